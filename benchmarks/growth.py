"""Cost against growing work: step time and memory over width, context and the fraction kept."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from transformer_dropout.layers import LearnedDropout
from transformer_dropout.tasks.language.decoder import DecoderConfig

from . import block_mlp
from .rounds import interleaved
from .row import Budget
from .saved_bytes import saved_bytes
from .training_sides import Side, learned_rule, our_side, published_side

WIDTHS = (64, 128, 256, 512, 1024)
CONTEXTS = (64, 128, 256, 512, 1024, 2048)
KEEPS = (0.1, 0.25, 0.5, 0.75, 1.0)
VOCABULARY, BLOCKS, HEAD = 256, 2, 16

Point = dict[str, Any]


def measure_growth(budget: Budget, on_point: Callable[[str], None]) -> dict[str, Any]:
    """Measure all points; a quick budget takes every other one.

    Args:
        budget: how many rounds.
        on_point: called with what is measured next.

    Returns:
        by axis, ``about`` and ``points``, each with ``at``, and seconds and saved bytes by side.
    """
    found: dict[str, Any] = {}
    for axis, about, points in series(budget):
        found[axis] = {"about": about, "points": []}
        for at, point in points:
            on_point(f"{axis} {at:g}")
            found[axis]["points"].append({"at": at} | point())
    return found


def points_to_measure(budget: Budget) -> int:
    """Return how many points there are."""
    return sum(len(thinned(values, budget)) for values in (WIDTHS, CONTEXTS, KEEPS))


def series(budget: Budget) -> Iterator[tuple[str, str, list[tuple[float, Callable[[], Point]]]]]:
    """Yield each axis, what stays fixed along it, and how to measure each of its points."""
    widths = [(width, partial(training_point, budget, width, 256, 2)) for width in thinned(WIDTHS, budget)]
    yield "width", f"{BLOCKS} blocks, 2x256 tokens", widths
    contexts = [
        (context, partial(training_point, budget, 144, context, 1)) for context in thinned(CONTEXTS, budget)
    ]
    yield "context", f"{BLOCKS} blocks, width 144, 1 window", contexts
    keeps = [(keep, partial(block_point, budget, keep)) for keep in thinned(KEEPS, budget)]
    yield "keep", "MLP of width 768, blocks of 256", keeps


def thinned(values: Sequence[float], budget: Budget) -> Sequence[Any]:
    """Return all values, or every other one for a quick budget."""
    return values[::2] if budget.quick else values


def training_point(budget: Budget, width: int, context: int, batch: int) -> Point:
    """Measure a training step of three decoders of one shape."""
    shape = DecoderConfig(width=width, heads=width // HEAD, blocks=BLOCKS, context=context)
    sides = {
        "reference": published_side(VOCABULARY, shape, batch, learned=True),
        "LearnedDropout": our_side(VOCABULARY, shape, batch, [learned_rule(LearnedDropout, shape)]),
        "no dropout": our_side(VOCABULARY, shape, batch, []),
    }
    times = interleaved({name: side.step for name, side in sides.items()}, budget.rounds)
    return {
        "seconds": {name: statistics.median(time[name] for time in times) for name in sides},
        "saved_bytes": {name: side_bytes(side) for name, side in sides.items()},
    }


def side_bytes(side: Side) -> int:
    """Return what a side's forward saves, its parameters left out."""
    return saved_bytes(side.loss, apart_from=side.model.parameters())


def block_point(budget: Budget, keep: float) -> Point:
    """Measure an MLP with blocks skipped, and dense."""
    found = block_mlp.block_mlp_ratio(budget, keep=keep)
    ours, dense, _ = block_mlp.sides(768, 256, keep, torch.float32, "sampled")
    x = torch.randn(2048, 768, requires_grad=True)
    return {
        "seconds": {"no dropout": found.seconds["reference"], "blocks skipped": found.seconds["ours"]},
        "saved_bytes": {
            name: saved_bytes(partial(mlp, x), apart_from=(x, *mlp.parameters()))
            for name, mlp in (("no dropout", dense), ("blocks skipped", ours))
        },
    }
