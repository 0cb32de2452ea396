"""What two runs of a model return, compared; and inputs with other tokens."""

from typing import Any

import torch
from torch import Tensor


def same(ones: list[Tensor], others: list[Tensor], tolerance: float | None = None) -> bool:
    """Return whether two lists of tensors hold the same numbers."""
    if [one.shape for one in ones] != [other.shape for other in others]:
        return False
    if tolerance is None:
        return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))
    pairs = zip(ones, others, strict=True)
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True) for a, b in pairs)


def distance(one: Tensor, other: Tensor) -> float:
    """Return the largest difference between two tensors."""
    return float((one - other).nan_to_num().abs().max())


def other_tokens(inputs: Any) -> Any:
    """Return the inputs with tokens, or images, in another order; None if that is the same."""
    if isinstance(inputs, Tensor):
        words = inputs.ndim > 1 and not inputs.is_floating_point()
        other = with_largest_at(inputs, inputs.flip(0).roll(1, -1)) if words else inputs * 0.5
        return None if torch.equal(other, inputs) else other
    if isinstance(inputs, dict):
        told = ("mask", "bbox", "position", "type", "grid")
        changed = {k: v if any(word in k for word in told) else other_tokens(v) for k, v in inputs.items()}
        return {k: inputs[k] if v is None else v for k, v in changed.items()}
    if isinstance(inputs, tuple):
        return tuple(value if (other := other_tokens(value)) is None else other for value in inputs)
    return None


def with_largest_at(ids: Tensor, others: Tensor) -> Tensor:
    """Return other ids with their largest where that of some ids is: models pool the token there."""
    place, largest = ids.max(-1, keepdim=True).indices, others.max(-1, keepdim=True)
    moved = others.scatter(-1, largest.indices, others.gather(-1, place))
    return moved.scatter(-1, place, largest.values)
