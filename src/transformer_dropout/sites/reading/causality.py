"""Which tokens a branch lets see which: measured by gradients in the observed run."""

import torch
from torch import Tensor

from .branches import AttentionNodes, Branch, between
from .graph import RunGraph, bits


def gradient(run: RunGraph, source: int, result: int, first: int, last: int) -> Tensor | None:
    """Return the gradient of some tokens of a result with respect to all tokens of its source."""
    given, made = run.tensors.get(source), run.tensors.get(result)
    if given is None or made is None or not made.requires_grad or made.ndim < 3 or given.ndim < 3:
        return None
    if given.shape[:2] != made.shape[:2]:
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
    if given is None or given.ndim != 3 or given.shape[1] < 2 or given.shape != run.nodes[result].shape:
        return None
    half = given.shape[1] // 2
    found = gradient(run, source, result, 0, half)
    if found is None or not bool(found[:half].any()):
        return None
    return bool(found[half:].any())


def mixes_tokens(run: RunGraph, branch: Branch, attention: AttentionNodes) -> bool:
    """Return whether an attention in a branch mixes tokens, rather than what each token holds of its own."""
    skip, product = run.nodes[branch.skip].shape, run.nodes[attention.product].shape
    if len(skip) != 3 or len(product) < 4 or product[:2] != skip[:2]:
        return True
    found = gradient(run, branch.skip, attention.product, skip[1] - 1, skip[1])
    # Where nothing shows, as with a single key, it is what it is written as.
    return found is None or not bool(found.any()) or bool(found[:-1].any())


def mixes(run: RunGraph, source: int, result: int) -> bool:
    """Return whether a token's result depends on any other token."""
    source = behind_batch_norm(run, source, result)
    given = run.tensors.get(source)
    if given is None or given.ndim < 3 or given.shape[1] < 2 or given.shape != run.nodes[result].shape:
        return False
    found = gradient(run, source, result, given.shape[1] - 1, given.shape[1])
    return found is not None and bool(found[:-1].any())


def behind_batch_norm(run: RunGraph, source: int, result: int) -> int:
    """Return what the first product is given of a source, where a batch norm, which mixes, is first."""
    first = next((n for n in bits(between(run, source, result)) if run.is_linear(run.nodes[n])), None)
    if first is None:
        return source
    given = run.activations(run.nodes[first])[0]
    passed = (run.nodes[n].name for n in bits(between(run, source, given)))
    return given if "batch_norm" in passed else source
