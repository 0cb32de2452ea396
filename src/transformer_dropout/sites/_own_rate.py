"""The rates at which a model itself drops at a site."""

from typing import Any

from torch import nn

from ._site import Site
from ._written_rates import is_written, leave_written, number_in, read_written, set_written


def holder_of(model: nn.Module, rate: str) -> tuple[Any, str]:
    """Return the module or config that holds a rate, and the name of the attribute.

    Args:
        model: the model.
        rate: the path of the rate, as a site has it.
    """
    path, _, name = rate.rpartition(".")
    holder: Any = model
    for part in path.split(".") if path else ():
        holder = getattr(holder, part)
    return holder, name


def read_rate(model: nn.Module, rate: str) -> Any:
    """Return the value of a rate of the model's own."""
    holder, name = holder_of(model, rate)
    return read_written(holder, name) if is_written(name) else getattr(holder, name)


def set_rate(model: nn.Module, rate: str, value: Any) -> None:
    """Set a rate of the model's own."""
    holder, name = holder_of(model, rate)
    if is_written(name):
        set_written(holder, name, value)
    elif name in vars(holder):
        # Past what a config makes of a number: MPT declares its rate an int, which no rate but 0 and 1 is.
        vars(holder)[name] = value
    else:
        setattr(holder, name, value)


def put_rate_back(model: nn.Module, rate: str, before: Any) -> None:
    """Give a rate of the model's own the value that it had before."""
    holder, name = holder_of(model, rate)
    if is_written(name) and before == number_in(name):
        leave_written(holder, name)
    else:
        set_rate(model, rate, before)


def own_rate(model: nn.Module, site: Site) -> float | None:
    """Return the rate of the model's own dropout at a site; None where it has none."""
    if site.access == "module":
        value: Any = getattr(model.get_submodule(site.path), "p", None)
    else:
        value = None if site.rate is None else read_rate(model, site.rate)
    return float(value) if isinstance(value, int | float) else None
