"""Which dropout a tensor comes from, followed from call to call."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

# Calls after which a tensor still holds the same numbers, or the same up to one factor.
SAME_NUMBERS = re.compile(
    r"view|reshape|permute|transpose|contiguous|to|float|half|bfloat16|type|type_as|clone"
    r"|squeeze|unsqueeze|flatten|unflatten|expand|__getitem__|index_select|select|chunk|split"
)
PRODUCTS = frozenset({"mul", "__mul__", "__rmul__", "div", "__truediv__"})


@dataclass(frozen=True)
class Origin:
    """Where a tensor comes from.

    Attributes:
        drawn: numbers of the dropouts that it depends on.
        dropped_by: the dropout whose output it is, unchanged but for its shape, dtype and scale.
        linear: the path of the linear layer whose output it is, and the dropout that the layer's input came
            from directly.
    """

    drawn: frozenset[int] = frozenset()
    dropped_by: int | None = None
    linear: tuple[str, int] | None = None


class Lineage:
    """Remembers the origin of every tensor that depends on a dropout.

    Attributes:
        batch_norms: for each path where a batch norm ran on such a tensor, the dropouts that feed it.
    """

    def __init__(self) -> None:
        self.origins: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.batch_norms: dict[str, frozenset[int]] = {}

    def follow(
        self, name: str, path: str, args: tuple, kwargs: Mapping[str, Any], result: Any, number: int | None
    ) -> None:
        """Take note of one call.

        Args:
            name: the function's name.
            path: the module that called it.
            args, kwargs: its arguments.
            result: what it returned.
            number: the dropout that it is, if it is one.
        """
        inputs = [
            origin for value in tensors_in((args, kwargs)) if (origin := self.origins.get(value)) is not None
        ]
        if number is None and not inputs:
            return
        drawn = frozenset().union(*(origin.drawn for origin in inputs))
        if name == "batch_norm" and drawn:
            self.batch_norms[path] = self.batch_norms.get(path, frozenset()) | drawn
        origin = Origin(drawn)
        if number is not None:
            origin = Origin(drawn | {number}, dropped_by=number)
        elif SAME_NUMBERS.fullmatch(name) or (name in PRODUCTS and scales(args)):
            origin = inputs[0]
        elif name == "linear" and inputs[0].dropped_by is not None:
            origin = Origin(drawn, linear=(path, inputs[0].dropped_by))
        for value in tensors_in(result):
            self.origins[value] = origin

    def before_output(self, output: Any) -> dict[str, int]:
        """Return the linear layers whose output the model returns and whose input a dropout made."""
        origins = (self.origins.get(value) for value in tensors_in(output))
        return dict(origin.linear for origin in origins if origin is not None and origin.linear is not None)


def scales(args: tuple) -> bool:
    """Say whether a product has only one factor that is more than a number."""
    return sum(isinstance(value, Tensor) and value.ndim > 0 for value in args) == 1


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and mappings."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from tensors_in(tuple(values.values()))
    elif isinstance(values, tuple | list) and not isinstance(values, str):
        for value in values:
            yield from tensors_in(value)


def first_tensor(values: Iterable[Any]) -> Tensor | None:
    """Return the first tensor of some arguments."""
    return next(tensors_in(tuple(values)), None)
