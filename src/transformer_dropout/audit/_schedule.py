"""Whether a schedule that moves rates lets torch.compile keep its graph."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import nn

from ..sites.observation.inputs import arguments_for
from ._events import Finding

POINTS = (0.0, 0.3, 0.6, 1.0)


class RateHandle(Protocol):
    """What moves the rates, as the handle of ``regularize_`` does."""

    progress: float

    def set_progress(self, progress: float) -> None:
        """Move every rate."""


def schedule_recompiles(model: nn.Module, inputs: Any, schedule: RateHandle) -> Iterator[Finding]:
    """Compile the model, move the schedule, and count the graphs that become necessary."""
    graphs: list[int] = []
    before = schedule.progress
    args, kwargs = arguments_for(model, inputs)
    # Traced only: a graph that runs as it is needs no compiler and is counted all the same.
    compiled = torch.compile(model, backend=counting_backend(graphs))
    try:
        counts = []
        for progress in POINTS:
            schedule.set_progress(progress)
            compiled(*args, **kwargs)
            counts.append(len(graphs))
    finally:
        schedule.set_progress(before)
    if counts[-1] > counts[0]:
        yield Finding(
            code="schedule-recompiles",
            site="",
            message=f"{len(POINTS)} values of the rates took {counts[-1] - counts[0]} graphs more than the "
            f"first value's {counts[0]}; after a few more, torch.compile falls back to eager for good. Use "
            "layers that keep their rate in a tensor, as td.regularize_ places them, not nn.Dropout.p.",
        )


def counting_backend(graphs: list[int]) -> Callable:
    """Return a backend of torch.compile that runs graphs as they are and counts them."""

    def backend(graph: torch.fx.GraphModule, example_inputs: list) -> Callable:
        graphs.append(1)
        return graph.forward

    return backend
