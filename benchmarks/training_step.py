"""A whole training step of the published 15M decoder with learned masks: forward, backward, optimizer.

The other side is built as the published code is: the mask of `published_twin` with its float16 round trip,
noise tensor and statistics in each step, plain modules, logits written out, eager, the default AdamW. Against
the dense decoder of as many parameters both sides are ours.
"""

from functools import partial
from typing import Any

from transformer_dropout.layers import LearnedDropout
from transformer_dropout.tasks.language.decoder import DecoderConfig

from .product import PRODUCTS
from .rounds import timed_ratio
from .row import Budget, Measurement, Path, Row
from .training_sides import check_same, learned_rule, our_side, published_side

VOCABULARY, BATCH = 50_257, 4
LEARNED: dict[str, Any] = {"width": 144, "heads": 9, "context": 200}
# As many parameters without a mask, as published.
DENSE: dict[str, Any] = {"width": 156, "heads": 12, "context": 200}
# How far the two sides may differ, in float32 and in bfloat16: in the loss and in the gradients.
ALLOWED = {False: (1e-5, 1e-4), True: (1e-3, 5e-2)}


def blocks(budget: Budget) -> int:
    """Return how many blocks the decoder has."""
    return 4 if budget.quick else 26


def about(budget: Budget, autocast: bool) -> dict:
    """Return what decides the numbers."""
    return {
        "shape": {"batch": BATCH, **LEARNED, "blocks": blocks(budget), "vocabulary": VOCABULARY},
        "dtype": "bfloat16" if autocast else "float32",
    }


def against_published(budget: Budget, *, autocast: bool) -> Measurement:
    """Time a step the published way and ours."""
    shape = DecoderConfig(**LEARNED, blocks=blocks(budget))
    reference = published_side(VOCABULARY, shape, BATCH, learned=True, autocast=autocast)
    ours = our_side(VOCABULARY, shape, BATCH, [learned_rule(LearnedDropout, shape)], autocast=autocast)
    loss, gradient = ALLOWED[autocast]
    gate = check_same(ours, reference, loss=loss, gradient=gradient)
    sides = {"reference": reference.step, "ours": ours.step}
    return timed_ratio(sides, budget, gate=gate, about=about(budget, autocast))


def against_dense(budget: Budget) -> Measurement:
    """Time our step with masks and our step of the dense decoder of as many parameters."""
    learned_shape, dense_shape = (DecoderConfig(**shape, blocks=blocks(budget)) for shape in (LEARNED, DENSE))
    learned = our_side(VOCABULARY, learned_shape, BATCH, [learned_rule(LearnedDropout, learned_shape)])
    dense = our_side(VOCABULARY, dense_shape, BATCH, [])
    reference = published_side(VOCABULARY, dense_shape, BATCH, learned=False)
    loss, gradient = ALLOWED[False]
    gate = "dense step and plain modules: " + check_same(dense, reference, loss=loss, gradient=gradient)
    sizes = [sum(p.numel() for p in side.model.parameters()) for side in (learned, dense)]
    sides = {"learned": learned.step, "dense": dense.step}
    return timed_ratio(
        sides,
        budget,
        over="learned",
        under="dense",
        gate=gate,
        about=about(budget, False) | {"dense": DENSE, "parameters": sizes},
    )


# To hold where PyTorch's product is as fast as oneDNN's.
TARGETS: dict[tuple[bool, Path], float] = {
    (False, "pure"): 1.15,
    (False, "native"): 1.3,
    (True, "pure"): 1.5,
    (True, "native"): 1.85,
}
DENSE_TARGETS: dict[Path, float] = {"pure": 1.10, "native": 1.06}

ROWS = (
    *(
        Row(
            name=f"training step, {'bfloat16' if autocast else 'float32'}: reference / ours",
            path=path,
            target=target,
            measure=partial(against_published, autocast=autocast),
            obstacle=PRODUCTS,
        )
        for (autocast, path), target in TARGETS.items()
    ),
    *(
        Row(
            name="training step: LearnedDropout / dense of as many parameters",
            path=path,
            target=target,
            at_least=False,
            measure=against_dense,
            obstacle="the floor counted in products is 1.036, with two attentions a block against one.",
        )
        for path, target in DENSE_TARGETS.items()
    ),
)
