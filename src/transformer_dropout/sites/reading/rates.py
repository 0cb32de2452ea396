"""Where each rate is read from: for the length of a run, every rate of a model is a number of its own."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any

from torch import nn

from ..observation.stack import is_dropout_module

# So small that next to nothing is dropped, and so far apart that 1 - p tells them apart too.
SMALLEST, STEP = 1e-6, 1e-10
TOLERANCE = 1e-13
NAME = re.compile(r"drop|^p$|^(p|rate|prob)_|_(p|prob|rate)$", re.IGNORECASE)


def rate_holders(model: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every module and every config in a model, as its path and its attributes."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        yield path, vars(module)
        for name, value in list(vars(module).items()):
            if hasattr(value, "to_dict") and hasattr(value, "__dict__") and id(value) not in seen:
                seen.add(id(value))
                yield f"{path}.{name}".lstrip("."), vars(value)


def rates_of(model: nn.Module) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield every attribute that may be a rate: the path of its holder, the holder's attributes, its name."""
    modules = dict(model.named_modules())
    for path, held in rate_holders(model):
        module = modules.get(path)
        alone = module is not None and is_dropout_module(module)
        for name, value in held.items():
            # Of numbers that are called p or prob, a dropout's only.
            named = "drop" in name.lower() or (NAME.search(name) and (alone or name == "p"))
            if named and type(value) in (int, float) and 0 <= value <= 1:
                yield path, held, name


@contextmanager
def told_apart(model: nn.Module, *, zeros: bool = True) -> Iterator[dict[str, float]]:
    """Give every rate of a model a small number of its own; yields these by the rate's path.

    Args:
        model: the model.
        zeros: whether those at 0 are rates, too.
    """
    found = [(path, held, name) for path, held, name in rates_of(model) if zeros or held[name]]
    before = [held[name] for _, held, name in found]
    numbers: dict[str, float] = {}
    try:
        for place, (path, held, name) in enumerate(found):
            held[name] = numbers[f"{path}.{name}".lstrip(".")] = SMALLEST + place * STEP
        yield numbers
    finally:
        for (_, held, name), value in zip(found, before, strict=True):
            held[name] = value


def rate_among(numbers: tuple[float, ...], rates: dict[str, float]) -> str | None:
    """Return the rate that one of some numbers is, or that is missing from one to 1."""
    for number in numbers:
        for p in (number, 1 - number):
            place = round((p - SMALLEST) / STEP) if isfinite(p) else -1
            if 0 <= place < len(rates) and abs(p - SMALLEST - place * STEP) < TOLERANCE:
                return list(rates)[place]
    return None
