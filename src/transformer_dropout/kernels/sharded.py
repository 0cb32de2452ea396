"""Tensors that several processes may hold in shards."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor, without importing what defines it."""
    return hasattr(tensor, "full_tensor")


def shards_parameters(module: nn.Module) -> bool:
    """Return whether FSDP, its first version or `fully_shard`, holds a module, without importing either."""
    return any(kind.__module__.startswith("torch.distributed.fsdp.") for kind in type(module).__mro__)


def reshard(module: nn.Module) -> None:
    """Let FSDP hold nothing but shards of a module again.

    After a forward without a backward its root still holds whole parameters, which no optimizer knows.
    """
    if shards_parameters(module):
        module.reshard()  # type: ignore[operator]


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor that may be sharded; every process must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def like_shards(tensor: Tensor, reference: Tensor) -> Tensor:
    """Return a whole tensor in the sharding of a reference, on its device."""
    if not is_sharded(reference):
        return tensor.to(reference.device)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(reference, DTensor)
    return distribute_tensor(tensor.to(reference.device), reference.device_mesh, reference.placements)


def sum_of(scalars: Iterable[Tensor]) -> Tensor:
    """Return the sum of scalars, those of sharded tensors summed over the processes; gradients stay local.

    Every process must call it. One communication serves all scalars of one sharding.
    """
    plain: list[Tensor] = []
    sharded: dict[object, list[Tensor]] = {}
    for scalar in scalars:
        layout = getattr(scalar, "device_mesh", None), getattr(scalar, "placements", None)
        (plain if layout[0] is None else sharded.setdefault(layout, [])).append(scalar)
    sums = [whole(torch.stack(group).sum()) for group in sharded.values()]
    return torch.stack([*plain, *sums]).sum()
