"""A training step with dropout everywhere, attention weights included: PyTorch's, and the counter-based.

The other side is the published baseline with p = 0.2: dropout on the embedding, the attention weights
(through PyTorch's own attention), the attention's output and the MLP's output, plain modules, logits written
out, eager, the default AdamW.
"""

import torch.nn.functional as F

from transformer_dropout.layers import Dropout
from transformer_dropout.recipe import Rule
from transformer_dropout.tasks.language.decoder import DecoderConfig, Embedding

from .product import PRODUCTS
from .rounds import timed_ratio
from .row import Budget, Measurement, Path, each_path
from .training_sides import PlainAttention, PlainMLP, Side, check_same, our_side, published_side
from .training_step import BATCH, DENSE, VOCABULARY, blocks

P = 0.2
SITES = ("embedding", "attention_weights", "attention_output", "mlp_output")


def torch_dropout(reference: Side) -> None:
    """Let PyTorch drop at the four places of a plain decoder, in training."""

    def drop(module, arguments, output):
        return F.dropout(output, P, training=module.training)

    for module in reference.model.modules():
        if isinstance(module, PlainAttention):
            module.p = P
        if isinstance(module, PlainAttention | PlainMLP | Embedding):
            module.register_forward_hook(drop)


def dropout_ratio(budget: Budget) -> Measurement:
    """Time a step with PyTorch's dropout and with ours."""
    shape = DecoderConfig(**DENSE, blocks=blocks(budget))
    reference = published_side(VOCABULARY, shape, BATCH, learned=False)
    ours = our_side(VOCABULARY, shape, BATCH, [Rule(site, Dropout, p=P) for site in SITES])
    torch_dropout(reference)
    gate = check_same(ours, reference, loss=1e-5, gradient=1e-4)
    losses = [sum(one.loss().item() for _ in range(3)) / 3 for one in (ours, reference)]
    assert abs(losses[0] / losses[1] - 1) < 1e-2, f"the losses with dropout are {losses}"
    return timed_ratio(
        {"reference": reference.step, "ours": ours.step},
        budget,
        gate=f"without dropout {gate}; with it losses {losses[0]:.3f} and {losses[1]:.3f}",
        about={
            "shape": {"batch": BATCH, **DENSE, "blocks": blocks(budget), "vocabulary": VOCABULARY},
            "dtype": "float32",
            "p": P,
            "sites": list(SITES),
        },
    )


TARGETS: dict[Path, float] = {"pure": 1.3, "native": 1.85}
ROWS = each_path(
    TARGETS,
    name="training step with dropout 0.2 everywhere: torch / ours",
    measure=dropout_ratio,
    obstacle=PRODUCTS,
)
