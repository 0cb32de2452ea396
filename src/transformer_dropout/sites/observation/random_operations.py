"""What the kernels are asked to draw: every random operation below autograd, with its rate and mask."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ...kernels.torch_internals import schema_of
from .rows import has_numbers

# Arguments of an operation that draws nothing when they have this value.
IDLE_ARGUMENTS = {"dropout_p": 0, "dropout": 0, "train": False, "training": False}


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One random operation as a kernel saw it.

    Attributes:
        name: the operation, as ``aten.bernoulli_``.
        rate: the probability of dropping that it was given, None when it was given none.
        dropped: the fraction of zeros in the mask, None where there is no mask to see.
        size: how many numbers were drawn.
        shape: of what was drawn.
    """

    name: str
    rate: float | None
    dropped: float | None
    size: int
    shape: tuple[int, ...]


class RandomOperations(TorchDispatchMode):
    """Calls ``on_draw`` with each random operation that runs while the mode is active."""

    # Flex attention and its like pass through unseen instead of failing.
    supports_higher_order_operators = True

    def __init__(self, on_draw: Callable[[Drawn], None]) -> None:
        super().__init__()
        self.on_draw = on_draw

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if schema_of(func) is not None:
            arguments = named_arguments(func, args, kwargs or {})
            if draws(func, arguments):
                self.on_draw(describe(func, arguments, result))
        return result


def named_arguments(func: Any, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return an operation's arguments by the names of its schema.

    The dispatcher leaves out what equals its default, such as the p = 0.5 of ``bernoulli_``.
    """
    schema = schema_of(func).arguments
    defaults = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    return defaults | dict(zip([argument.name for argument in schema], args, strict=False)) | dict(kwargs)


def draws(func: Any, arguments: Mapping[str, Any]) -> bool:
    """Return whether a call of an operation is random, given its arguments."""
    # Some kernels that drop inside, as quantised recurrent ones, do not say so of themselves.
    given = arguments.get("dropout_p") or arguments.get("dropout")
    if torch.Tag.nondeterministic_seeded not in func.tags and not given:
        return False
    # What is left at its default is idle: no attention kernel drops unless it is asked to.
    known = [argument.name for argument in schema_of(func).arguments if argument.name in IDLE_ARGUMENTS]
    return all(arguments.get(name, IDLE_ARGUMENTS[name]) != IDLE_ARGUMENTS[name] for name in known)


def describe(func: Any, arguments: Mapping[str, Any], result: Any) -> Drawn:
    """Return what a random operation drew."""
    name = schema_of(func).name.replace("::", ".")
    first = result[0] if isinstance(result, tuple | list) else result
    mask, rate = None, arguments.get("dropout_p", arguments.get("dropout"))
    if name in ("aten.bernoulli_", "aten.bernoulli"):
        mask = first
        p = arguments.get("p")
        rate = round(1 - p, 12) if isinstance(p, int | float) else None
    elif name == "transformer_dropout.drawn_dropout":
        rate = arguments["p"]
    elif name == "aten.native_dropout":
        mask, rate = result[1], arguments["p"]
    return Drawn(
        name=name,
        rate=rate,
        dropped=None if mask is None or mask.numel() < 2 else fraction_of_zeros(mask),
        size=first.numel(),
        shape=tuple(first.shape),
    )


def fraction_of_zeros(mask: Tensor) -> float | None:
    """Return the fraction of zeros in a 0/1 mask, None for a mask whose values do not exist."""
    if not has_numbers(mask):
        return None
    return 1 - mask.count_nonzero().item() / mask.numel()
