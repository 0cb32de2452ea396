"""The rate at which a model itself drops at a site."""

from typing import Any

from torch import nn

from ._site import Site


def own_rate(model: nn.Module, site: Site) -> float | None:
    """Return the rate of the model's own dropout at a site; None where it has none."""
    if site.rate is not None:
        path, _, name = site.rate.rpartition(".")
        value: Any = getattr(model.get_submodule(path), name)
    else:
        module: Any = model.get_submodule(site.path)
        value = getattr(module, "p", None) if site.access == "module" else None
    return float(value) if isinstance(value, int | float) else None
