"""Masks that are computed before the first block, against masks that each block computes: step and forward.

Both sides are ours, the published 15M decoder with a learned mask on the output of each MLP. What is counted
for a mask is nearly the same, three projections and an attention; what one product and one attention for all
blocks can save is calls, at the price of one attention more, over the embeddings. The forward is one of
evaluation, whose masks are thresholds.
"""

from functools import partial

import torch

from transformer_dropout.layers import LearnedDropout, PrecomputedLearnedDropout
from transformer_dropout.layers.precomputed import MaskEmbedding
from transformer_dropout.tasks.language.decoder import DecoderConfig

from .rounds import timed_ratio
from .row import Budget, Measurement, Path, Row
from .training_sides import Side, learned_rule, our_side
from .training_step import BATCH, LEARNED, VOCABULARY, about, blocks


def check_all_at_once(side: Side) -> str:
    """Check that a forward computed all gates beforehand, as each layer alone would have."""
    with torch.no_grad():
        side.loss()
        (source,) = (module for module in side.model.modules() if isinstance(module, MaskEmbedding))
        assert source.gates is not None and source.current is not None, "each block computed its own mask"
        embedding, found = source.current, source.gates
        source.gates = None
        alone = [layer.gate(embedding) for layer in source.layers]
    apart = max((a - b).abs().max().item() for a, b in zip(alone, found, strict=True))
    largest = max(each.abs().max().item() for each in alone)
    assert apart < 1e-4 * largest, f"the gates differ by {apart:.1e}, the largest is {largest:.1e}"
    return f"{len(found)} gates computed at once, within {apart / largest:.0e} of each alone"


def ratio(budget: Budget, *, training: bool) -> Measurement:
    """Time pre-computed masks and LearnedDropout."""
    shape = DecoderConfig(**LEARNED, blocks=blocks(budget))
    ours, learned = (
        our_side(VOCABULARY, shape, BATCH, [learned_rule(layer, shape)])
        for layer in (PrecomputedLearnedDropout, LearnedDropout)
    )
    gate = check_all_at_once(ours)
    for side in (ours, learned):
        side.model.train(training)
    calls = {
        name: side.step if training else torch.no_grad()(side.loss)
        for name, side in (("learned", learned), ("ours", ours))
    }
    return timed_ratio(calls, budget, over="ours", under="learned", gate=gate, about=about(budget, False))


OBSTACLE = "the masks' products, which both sides have, and one attention over the embeddings more."
PATHS: tuple[Path, ...] = ("pure", "native")
ROWS = tuple(
    Row(
        name=f"{name}: pre-computed masks / LearnedDropout",
        path=path,
        target=0.9,
        at_least=False,
        measure=partial(ratio, training=training),
        obstacle=OBSTACLE,
    )
    for name, training in (("training step", True), ("evaluation forward", False))
    for path in PATHS
)
