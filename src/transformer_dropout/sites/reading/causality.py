"""Which tokens a branch lets see which: measured by gradients in the observed run."""

import torch
from torch import Tensor

from .graph import RunGraph


def gradient(run: RunGraph, source: int, result: int, first: int, last: int) -> Tensor | None:
    """Return the gradient of some tokens of a result with respect to all tokens of its source."""
    given, made = run.tensors.get(source), run.tensors.get(result)
    if given is None or made is None or not made.requires_grad or made.ndim < 3 or given.shape != made.shape:
        return None
    if made.device.type == "meta":
        return None
    part = made[:, first:last]
    weights = torch.linspace(-1, 1, part.numel(), dtype=part.dtype, device=part.device).sin().view_as(part)
    try:
        found = torch.autograd.grad((part * weights).sum(), given, retain_graph=True, allow_unused=True)[0]
    except RuntimeError:
        return None
    return None if found is None else found.abs().flatten(2).sum((0, 2)) if found.ndim >= 3 else None


def sees_later(run: RunGraph, source: int, result: int) -> bool | None:
    """Return whether a token's result depends on tokens after it; None where that cannot be seen."""
    given = run.tensors.get(source)
    if given is None or given.ndim != 3 or given.shape[1] < 2:
        return None
    half = given.shape[1] // 2
    found = gradient(run, source, result, 0, half)
    if found is None or not bool(found[:half].any()):
        return None
    return bool(found[half:].any())


def mixes(run: RunGraph, source: int, result: int) -> bool:
    """Return whether a token's result depends on any other token."""
    given = run.tensors.get(source)
    if given is None or given.ndim < 3 or given.shape[1] < 2:
        return False
    found = gradient(run, source, result, given.shape[1] - 1, given.shape[1])
    return found is not None and bool(found[:-1].any())
