"""What would not fit into memory is refused from its numbers, before anything is allocated."""

import os

import torch

from ..errors import InputError
from .cost import Cost, count_cost
from .run_config import RunConfig
from .task import Splits


def fitting_cost(config: RunConfig, splits: Splits) -> Cost:
    """Return what a run costs with these examples, or with stand-ins for them.

    Raises:
        InputError: when it needs more memory than this machine has, or the recipe does not fit the model.
    """
    cost = count_cost(config, splits)
    refuse_what_does_not_fit(config, cost)
    return cost


def refuse_what_does_not_fit(config: RunConfig, cost: Cost) -> None:
    """Refuse a run that needs more memory than this machine has.

    Raises:
        InputError: naming the key and what would fit.
    """
    there, needed = memory_bytes(), cost.memory_bytes
    if needed <= there:
        return
    weights = 16 * cost.parameters
    have = f"{needed / 2**30:,.0f} GiB are needed by this estimate, and {there / 2**30:,.0f} GiB are there"
    if weights >= there:
        raise InputError(
            f"The model does not fit into memory: {have}, of which its {cost.parameters:,} parameters with "
            "gradients and moments alone take more; make it smaller with --set model...."
        )
    fits = int(config.training.batch * (there - weights) / (needed - weights))
    if fits < 1:
        raise InputError(f"One example does not fit into memory: {have}; make the model or example smaller.")
    raise InputError(
        f"training.batch {config.training.batch} does not fit into memory: {have}; use --set "
        f"training.batch={fits} or less, with training.accumulation for the rest."
    )


def memory_bytes() -> int:
    """Return the memory of the GPU, or else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
