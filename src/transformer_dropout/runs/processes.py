"""One process or several under ``torchrun``: who am I, what do I share, how do I agree."""

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import InputError
from .orphan import end_with_launcher


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among those that train one model.

    Attributes:
        rank: which one this is.
        size: how many there are.
        device: where this one computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def sum_of_numbers(self, value: int) -> int:
        """Return the sum of one whole number over the processes."""
        return value if self.size == 1 else int(self.sum(torch.tensor(value, device=self.device)))

    def gather(self, value: Any) -> list[Any]:
        """Return the value of every process, in the order of ranks."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started, or stand alone."""
    cuda = torch.cuda.is_available()
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Processes(rank=0, size=1, device=torch.device("cuda" if cuda else "cpu"))
        return
    end_with_launcher()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Processes(rank=dist.get_rank(), size=size, device=device)
    except RuntimeError as error:
        if not lost_another(error):
            raise
        raise InputError(
            "Another process of this run has ended, and this one cannot go on without it; what was saved is "
            "kept: continue with the same torchrun command and --resume."
        ) from None
    # One that leaves early takes its half of the connections down under the others.
    dist.barrier()


def lost_another(error: RuntimeError) -> bool:
    """Return whether an error says that the connection to another process is gone."""
    words = str(error).lower()
    return isinstance(error, dist.DistError) or "closed by peer" in words or "reset by peer" in words


def leave(code: int) -> NoReturn:
    """End this process; among several without the interpreter's clean-up.

    In that clean-up torch's communication threads now and then abort a process whose run is finished.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if dist.is_available() and dist.is_initialized():
        os._exit(code)
    sys.exit(code)


def spread(model: nn.Module, processes: Processes, kind: str) -> nn.Module:
    """Return the module to call for training on several processes: DDP, or FSDP2 in place."""
    if processes.size == 1:
        return model
    if kind == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    from torch.distributed.fsdp import fully_shard

    for block in repeated_blocks(model):
        fully_shard(block)
    fully_shard(model)
    return model


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of the largest stack of a model: the list with the most parameters in it."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    sizes = [sum(parameter.numel() for parameter in stack.parameters()) for stack in stacks]
    return list(stacks[sizes.index(max(sizes))]) if stacks else []


def without_gradient_sync(module: nn.Module, processes: Processes, last: bool) -> AbstractContextManager:
    """Leave gradients unsynchronised in all but the last forward of an optimizer step."""
    if processes.size == 1:
        return nullcontext()
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return nullcontext() if last else module.no_sync()
    from torch.distributed.fsdp import FSDPModule

    assert isinstance(module, FSDPModule)
    module.set_requires_gradient_sync(last)
    return nullcontext()


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory this process has used: on its GPU, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
