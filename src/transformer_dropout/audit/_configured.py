"""Where a rate was written down: in a module's attributes, and in the model's config."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from ..sites.observation.stack import is_dropout_module
from ._places import ATTENTION

# Rates may have been rounded to 32 bits.
TOLERANCE = 1e-7
BLOCK = re.compile(r"layer_?drop|drop_?path|drop_prob", re.IGNORECASE)


def rate_attributes(module: nn.Module) -> Iterator[tuple[str, float]]:
    """Yield the names and values of the rates that a module and its dropout children hold."""
    for name, value in vars(module).items():
        if is_rate(value) and ("drop" in name or (name == "p" and is_dropout_module(module))):
            yield name, float(value)
    for name, child in module.named_children():
        p: Any = getattr(child, "p", None)
        if is_dropout_module(child) and is_rate(p):
            yield f"{name}.p", float(p)


def is_rate(value: Any) -> bool:
    """Return whether a value is a number between 0 and 1."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def configured_rate(module: nn.Module, kind: str, resolved: float | None) -> tuple[str, float] | None:
    """Return the attribute that an operation's rate comes from, as far as its module shows it.

    An attribute that equals the rate of the operation is taken first; else, for attention, the one that is
    named after it; else the one that the module has, when it has only one.
    """
    held = list(rate_attributes(module))
    if resolved is not None:
        equal = [item for item in held if abs(item[1] - resolved) < TOLERANCE]
        if equal:
            named = [
                item for item in equal if (kind == "attention_weights") == bool(ATTENTION.search(item[0]))
            ]
            return (named or equal)[0]
    if kind == "block" and not any(BLOCK.search(name) for name, _ in held):
        # Some leave out blocks at a rate that they read from the config each time.
        config = getattr(module, "config", None)
        fields = vars(config).items() if hasattr(config, "__dict__") else ()
        read = [(f"config.{name}", rate) for name, rate in fields if BLOCK.search(name) and is_rate(rate)]
        held = read or held
    word = {"attention_weights": ATTENTION, "block": BLOCK}.get(kind)
    if word is not None and any(word.search(name) for name, _ in held):
        return next(item for item in held if word.search(item[0]))
    return held[0] if len(held) == 1 and (resolved is None or is_dropout_module(module)) else None


def config_fields(model: nn.Module) -> dict[str, float | None]:
    """Return the dropout fields of ``model.config`` by their dotted names, None where a field is unset."""
    config = getattr(model, "config", None)
    if config is None:
        return {}
    if hasattr(config, "to_dict"):
        return dict(dropout_fields(config.to_dict()))
    return dict(dropout_fields(vars(config))) if hasattr(config, "__dict__") else {}


def dropout_fields(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | None]]:
    """Yield the dropout fields of a config and of the configs inside it."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from dropout_fields(value, f"{prefix}{name}.")
        elif "drop" in str(name) and (value is None or is_rate(value)):
            yield f"{prefix}{name}", None if value is None else float(value)
