"""What would not fit into memory is refused from its numbers, before anything is allocated."""

import os

import torch

from ..errors import InputError
from .cost import Cost, build_for_counting, count_cost, count_parameters, needed_bytes
from .held_out import HeldOut
from .run_config import RunConfig
from .task import Splits


def fitting_cost(config: RunConfig, splits: Splits) -> Cost:
    """Return what a run costs with these examples, or with stand-ins for them.

    Raises:
        InputError: when it needs more memory than this machine has, or the recipe does not fit the model.
    """
    cost = count_cost(config, splits)
    refuse_what_does_not_fit(config, cost.parameters, cost.memory_bytes)
    return cost


def check_fit(config: RunConfig, splits: Splits) -> None:
    """Refuse what ``fitting_cost`` refuses, in a third of its time: no operation is counted.

    Raises:
        InputError: when the run needs more memory than this machine has, or the recipe does not fit.
    """
    model, objective, batch, regularization = build_for_counting(config, splits)
    HeldOut(config.training, model, regularization, config.seed)
    needed = needed_bytes(config.training, objective, model, batch)
    refuse_what_does_not_fit(config, count_parameters(model), needed)


def refuse_what_does_not_fit(config: RunConfig, parameters: int, needed: int) -> None:
    """Refuse a run that needs more memory than this machine has.

    Args:
        config: the run.
        parameters: its model's and its layers'.
        needed: the bytes that it needs.

    Raises:
        InputError: naming the key and what would fit.
    """
    there = memory_bytes()
    if needed <= there:
        return
    weights = 16 * parameters
    have = f"{needed / 2**30:,.0f} GiB are needed by this estimate, and {there / 2**30:,.0f} GiB are there"
    if weights >= there:
        raise InputError(
            f"The model does not fit into memory: {have}, of which its {parameters:,} parameters with "
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
