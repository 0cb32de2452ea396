"""Experts whose hidden units a method of their own computes."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

METHOD = "_apply_gate"


@contextmanager
def gates_seen(model: nn.Module) -> Iterator[dict[str, int]]:
    """Take note of the experts that call their gate in a run; yields their hidden widths by path."""
    widths: dict[str, int] = {}
    holders = [(path, part) for path, part in model.named_modules() if callable(getattr(part, METHOD, None))]
    for path, part in holders:
        vars(part)[METHOD] = partial(compute_and_note_width, widths, path, getattr(part, METHOD))
    try:
        yield widths
    finally:
        for _, part in holders:
            del vars(part)[METHOD]


def compute_and_note_width(widths: dict[str, int], path: str, gate: Any, *given: Tensor) -> Tensor:
    """Compute a gate, and take note of its width."""
    hidden = gate(*given)
    widths[path] = hidden.shape[-1]
    return hidden
