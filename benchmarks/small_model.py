"""Training tokens per second of a small model with learned masks, optimizer included.

The other side is built as the published code is, as in `training_step`. At this size most of the time is
calls, not products.
"""

from dataclasses import replace

from transformer_dropout.layers import LearnedDropout
from transformer_dropout.tasks.language.decoder import DecoderConfig

from .rounds import timed_ratio
from .row import Budget, Measurement, Path, Row
from .training_sides import check_same, learned_rule, our_side, published_side

VOCABULARY, BATCH = 256, 16
SHAPE = DecoderConfig(width=64, heads=4, blocks=6, context=64)


def tokens_ratio(budget: Budget) -> Measurement:
    """Time steps of the small model the published way and ours."""
    reference = published_side(VOCABULARY, SHAPE, BATCH, learned=True)
    ours = our_side(VOCABULARY, SHAPE, BATCH, [learned_rule(LearnedDropout, SHAPE)])
    gate = check_same(ours, reference, loss=1e-5, gradient=1e-4)
    measured = timed_ratio(
        {"reference": reference.step, "ours": ours.step},
        budget,
        calls=3 if budget.quick else 20,
        gate=gate,
        about={"shape": {"batch": BATCH, **vars(SHAPE), "vocabulary": VOCABULARY}, "dtype": "float32"},
    )
    seconds = {name: round(BATCH * SHAPE.context / s) for name, s in measured.seconds.items()}
    return replace(measured, about={**measured.about, "tokens_per_second": seconds})


OBSTACLES: dict[Path, str] = {
    "pure": "attention, which is PyTorch's on both sides, and many small calls.",
    "native": "many small calls.",
}
TARGETS: dict[Path, float] = {"pure": 1.0, "native": 1.15}
ROWS = tuple(
    Row(
        name="small model, training tokens a second: ours / reference",
        path=path,
        target=target,
        measure=tokens_ratio,
        obstacle=OBSTACLES[path],
    )
    for path, target in TARGETS.items()
)
