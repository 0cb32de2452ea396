"""Ready recipes, each with the paper it comes from.

They use only places that every transformer has: embedding, attention weights, attention output and MLP
output, and ``layer_drop`` the whole block. A classifier's own dropout is not among them, since most models
have no classifier; add a rule for it: ``td.Recipe([*td.recipes.bert().rules, td.Rule("classifier", ...)])``.
"""

from .errors import InputError
from .layers import Dropout, LayerDrop, LearnedDropout
from .recipe import Recipe, Rule
from .schedules import Early, Late, Linear, Schedule

RESIDUAL = ("attention_output", "mlp_output")
INSIDE_BLOCKS = ("attention_weights", *RESIDUAL)
EVERYWHERE = ("embedding", *INSIDE_BLOCKS)


def standard(
    p: float | Schedule, places: tuple[str, ...] = EVERYWHERE, depth: Schedule | None = None
) -> Recipe:
    """Return plain dropout at the same rate in several places.

    Args:
        p: probability of dropping, a number or a schedule over training.
        places: kinds of sites; by default the four where GPT and BERT have it.
        depth: a factor for ``p``, a schedule over the depth of the stack.

    Raises:
        InputError: when p lies outside [0, 1].

    Paper: Vaswani et al. 2017, "Attention is all you need".
    """
    return Recipe(Rule(place, Dropout, p=p, depth=depth) for place in places)


def small_data(p: float = 0.1) -> Recipe:
    """Return what a small text wants first: plain dropout at its usual four places.

    What belongs to it and is no layer stands in a run config or a loop: weight decay 1, and where twice the
    cost is no matter R-Drop.

    Args:
        p: probability of dropping.

    Raises:
        InputError: when p lies outside [0, 1].

    Paper: Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting".
    """
    return standard(p)


def gpt2(p: float = 0.1) -> Recipe:
    """Return the dropout of GPT-2's published configuration, at its four places.

    Args:
        p: ``embd_pdrop``, ``attn_pdrop`` and ``resid_pdrop`` in one.

    Raises:
        InputError: when p lies outside [0, 1].

    Paper: Radford et al. 2019, "Language models are unsupervised multitask learners".
    """
    return standard(p)


def bert(p: float = 0.1) -> Recipe:
    """Return the dropout of BERT's published configuration, without the classifier's.

    Args:
        p: ``hidden_dropout_prob`` and ``attention_probs_dropout_prob`` in one.

    Raises:
        InputError: when p lies outside [0, 1].

    Paper: Devlin et al. 2019, "BERT: pre-training of deep bidirectional transformers".
    """
    return standard(p)


def lima(p: float = 0.3) -> Recipe:
    """Return residual dropout that rises linearly with depth, from 0 in the first block.

    Args:
        p: the rate in the last block; the paper takes 0.3, and 0.2 for smaller models.

    Raises:
        InputError: when p lies outside [0, 1].

    Paper: Zhou et al. 2023, "LIMA: less is more for alignment".
    """
    return standard(p, RESIDUAL, Linear(0.0, 1.0))


def early(p: float = 0.1, until: float = 1 / 6) -> Recipe:
    """Return dropout that falls to 0 over the first part of training, for models that underfit.

    Args:
        p: the rate at the start.
        until: the progress at which it ends; the paper's 50 of 300 epochs by default.

    Raises:
        InputError: when p lies outside [0, 1] or until outside (0, 1].

    Paper: Liu et al. 2023, "Dropout reduces underfitting".
    """
    return standard(Early(p, until, linear=True))


def late(p: float = 0.1, start: float = 1 / 6) -> Recipe:
    """Return dropout that is off over the first part of training, for models that overfit.

    Args:
        p: the rate once it is on.
        start: the progress at which it begins; the paper's 50 of 300 epochs by default. The paper tests it
            with stochastic depth.

    Raises:
        InputError: when p lies outside [0, 1] or start outside [0, 1).

    Paper: Liu et al. 2023, "Dropout reduces underfitting".
    """
    return standard(Late(p, start))


def layer_drop(p: float = 0.2) -> Recipe:
    """Return whole blocks left out at random, which also prepares a model for losing some of them.

    It needs a model whose blocks are sites: residual blocks, each adding to its own input.

    Args:
        p: probability of leaving a block out.

    Raises:
        InputError: when p lies outside [0, 1].

    Paper: Fan et al. 2020, "Reducing transformer depth on demand with structured dropout".
    """
    return Recipe([Rule("block", LayerDrop, p=p)])


def adaptive(p: float = 0.1) -> Recipe:
    """Return dropout that falls in a straight line to 0 over the whole training or fine-tuning.

    Args:
        p: the rate at the start.

    Raises:
        InputError: when p lies outside [0, 1].

    Paper: Rennie et al. 2014, "Annealed dropout training of deep networks".
    """
    return standard(Linear(p, 0.0))


def layerwise(n_blocks: int, base: float = 0.1, step: float = 0.02, falling: bool = False) -> Recipe:
    """Return dropout inside the blocks whose rate changes by the same step from block to block.

    Formula: ``p(block) = base + step * block``, or ``base + step * (n_blocks - 1 - block)`` when falling.

    A recipe knows depth as a fraction only, so the number of blocks has to be said here.

    Args:
        n_blocks: number of blocks of the model.
        base: the lowest rate, of the first block, or the last when falling.
        step: by how much it grows from one block to the next, at least 0.
        falling: whether the first block has the highest rate instead of the last.

    Raises:
        InputError: when there is no block, a number is negative, or the highest rate is above 1.

    Paper: Huang et al. 2016, "Deep networks with stochastic depth", for a rate linear in depth.
    """
    if n_blocks < 1 or base < 0 or step < 0:
        raise InputError(
            f"layerwise got n_blocks={n_blocks}, base={base} and step={step}; write at least 1 block, and 0 "
            "or more for base and step (falling=True turns the order round)."
        )
    top = base + step * (n_blocks - 1)
    if top > 1:
        raise InputError(
            f"layerwise reaches a rate of {top:g} in {n_blocks} blocks; with base={base:g} use a step of at "
            f"most {max(1 - base, 0) / max(n_blocks - 1, 1):g}."
        )
    # The factor of the block with the lowest rate; in a model of one block, that block has both.
    lowest = base / top if top else 1.0
    return standard(top, INSIDE_BLOCKS, Linear(1.0, lowest) if falling else Linear(lowest, 1.0))


def learned(heads: int, weight: float | Schedule = 0.1) -> Recipe:
    """Return a learned mask on the output of each MLP, as published.

    Args:
        heads: attention heads of each mask; they divide the model's width.
        weight: factor of the penalty in the loss, a number or a schedule over training.

    Paper: Yan 2024, "Learned Dropout".
    """
    return Recipe([Rule("mlp_output", LearnedDropout, heads=heads, weight=weight)])
