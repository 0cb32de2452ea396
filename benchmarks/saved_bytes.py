"""What a forward keeps in memory for its backward."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def saved_bytes(forward: Callable[[], object], apart_from: Iterable[Tensor] = ()) -> int:
    """Return the bytes of the distinct memory that autograd saves in a forward.

    Args:
        forward: run once.
        apart_from: tensors that are there anyway, such as parameters.
    """
    there = {tensor.untyped_storage().data_ptr() for tensor in apart_from}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # Held until the count is done, so that no memory is used twice.
        result = forward()
        total = sum(kept.values())
    del result
    return total
