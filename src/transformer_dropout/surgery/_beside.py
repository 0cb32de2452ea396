"""What a model itself still draws beside a recipe, and the proof of the places that a recipe uses."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..errors import InputError
from ..sites import Site, own_rate
from ..sites._function_dropouts import function_dropouts
from .check import checks_of


def beside(
    model: nn.Module,
    sites: Iterable[Site],
    ruled: set[str],
    moved: Mapping[str, float],
    *,
    named: bool = False,
) -> tuple[str, ...]:
    """Return a line for each place where the model itself still drops; warn of what no layer can silence.

    Args:
        model: the regularized model.
        sites: its places.
        ruled: the names of those at which a layer acts.
        moved: the rates of the model's own that the recipe has changed, with what they were.
        named: whether the user named the places, rather than `find_sites`.
    """
    lines, unreached = [], []
    for site in sites:
        if site.name in ruled:
            continue
        where = site.path or "the model itself"
        if site.access == "none" and site.rate in moved:
            rate = own_rate(model, site) or 0.0
            lines.append(f"{where}  {site.kind}  {site.rate}, which the recipe has set to {rate:.4g}")
            warnings.warn(
                f"A dropout in {where} reads {site.rate} too, which the recipe has set from "
                f"{moved[site.rate]:.4g} to {rate:.4g}, and no layer can act there; give it a rate of its "
                "own in the code for it to stay as it was.",
                UserWarning,
                stacklevel=3,
            )
        elif site.access == "none" and site.rate is None:
            unreached.append(where)
            lines.append(f"{site.path}  {site.kind}")
        elif rate := own_rate(model, site):
            lines.append(f"{site.path}  {site.kind}  {rate:.4g}")
        elif rate is None and site.rate is not None:
            lines.append(f"{site.path}  {site.kind}  a rate that its code computes")
    if unreached:
        warnings.warn(
            f"The model draws random numbers in training that no layer can take the place of, in "
            f"{', '.join(dict.fromkeys(unreached))}; two forwards will differ whatever the recipe says.",
            UserWarning,
            stacklevel=3,
        )
    read = not named and any(site.found == "code" for site in sites)
    functions = function_dropouts(model) if read else []
    if functions:
        more = f" and {len(functions) - 3} more" if len(functions) > 3 else ""
        warnings.warn(
            f"No inputs were known for a run of this {type(model).__name__}, so its places were read off its "
            f"code; {', '.join(functions[:3])}{more} drop with functions there, which no layer takes the "
            "place of; give inputs=, what the model is called with.",
            UserWarning,
            stacklevel=3,
        )
        lines += [f"{path}  other" for path in functions]
    return tuple(lines)


def prove(model: nn.Module, inputs: Any, chosen: list[Site], known: list[Site]) -> None:
    """Check the places that a recipe is about to use, out of those that are known.

    Raises:
        InputError: when one is not what it is called.
    """
    problems = [check.problem for check in checks_of(model, inputs, chosen, known) if check.problem]
    if problems:
        more = f" And {len(problems) - 1} more; see td.check_sites(model, inputs)." if problems[1:] else ""
        raise InputError(
            f"{problems[0]}{more} Hand over other sites, td.regularize_(model, recipe, sites=[...])."
        )
