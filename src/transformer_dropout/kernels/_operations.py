"""Kernels as operations of torch: who counts or looks at operations sees them, and nothing else runs.

Where nobody watches, the kernel is called directly, which saves the way through torch's dispatcher.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from ._native import is_watched
from .torch_internals import watching_modes

LIBRARY = torch.library.Library("transformer_dropout", "DEF")
# What counters of FLOPs are told of each operation that multiplies matrices.
FLOPS: dict[Any, Callable[..., int]] = {}


def operation(
    schema: str, *, random: bool = False, flops: Callable[..., int] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make an operation ``torch.ops.transformer_dropout.NAME`` of a kernel for the processor.

    Args:
        schema: its arguments and results, as ``"(Tensor x, float p) -> Tensor"``; its name is the kernel's.
        random: whether it draws from torch's generator.
        flops: how many it takes, as a function of its arguments and ``out_val``.
    """

    def make(kernel: Callable[..., Any]) -> Callable[..., Any]:
        name = kernel.__name__
        LIBRARY.define(name + schema, tags=(torch.Tag.nondeterministic_seeded,) if random else ())
        LIBRARY.impl(name, kernel, "CPU")
        packet = getattr(torch.ops.transformer_dropout, name)
        if flops is not None:
            FLOPS[packet] = flops

        @wraps(kernel)
        def run(*args: Any) -> Any:
            if not is_watched():
                return kernel(*args)
            tell_counters()
            return packet.default(*args)

        return run

    return make


def tell_counters() -> None:
    """Tell every FLOP counter that is at work how to count these operations.

    It is not done when they are defined: torch's table of formulas takes half a second to import.
    """
    for mode in watching_modes():
        registry = getattr(getattr(mode, "counter", None), "flop_registry", None)
        if isinstance(registry, dict):
            registry.update(FLOPS)
