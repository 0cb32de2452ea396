"""Models that no layer can be put into as they are, each with what to type instead."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..errors import InputError
from ..kernels.sharded import shards_parameters
from ..kernels.torch_internals import is_compiled
from ..recipe import Rule
from ..sites import Site, own_rate

if TYPE_CHECKING:
    from .regularize import Regularization

# The attribute of a regularized model, in its own dictionary: it is no module and no state.
HANDLE = "regularization_handle"


def refuse_wrapped(model: nn.Module) -> None:
    """Raise InputError for a model whose wrapper or compiler would not see a new layer."""
    for path, module in model.named_modules():
        where = f"{path} in the model" if path else "The model"
        if is_compiled(module):
            raise InputError(
                f"{where} is already compiled; call td.regularize_ first and torch.compile after it."
            )
        if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            raise InputError(
                f"{where} is wrapped in {type(module).__name__} already, which would not share the gradients "
                "of new layers; call td.regularize_ on the model itself and wrap it after."
            )
        if shards_parameters(module):
            raise InputError(
                f"{where} is sharded by FSDP already, which would not share the gradients of new layers; "
                "call td.regularize_ on the whole model and shard it after."
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                f"{where} is a TorchScript module, whose code cannot be changed; call td.regularize_ on the "
                "Python model that it was made from."
            )
        if any(nn.parameter.is_lazy(parameter) for parameter in module.parameters(recurse=False)):
            raise InputError(f"{where} has no sizes yet; run one forward before td.regularize_.")


def handle_of(model: nn.Module) -> "Regularization":
    """Return the handle of a regularized model, for when nothing holds it any more.

    Args:
        model: what `regularize_` or `set_rates` was given, or what wraps it.

    Raises:
        InputError: for a model that is not regularized.
    """
    handle = handle_on(model)
    if handle is None:
        raise InputError(
            f"This {type(model).__name__} is not regularized; call td.regularize_ first, or ask for the "
            "handle of the larger model that was given to it."
        )
    return handle


def handle_on(model: nn.Module) -> "Regularization | None":
    """Return the handle of a regularized model; None for any other."""
    handles = (vars(module).get(HANDLE) for module in model.modules())
    return next((handle for handle in handles if handle is not None), None)


def refuse_second(model: nn.Module) -> None:
    """Raise InputError for a model that is regularized already, naming the handle and what it placed."""
    handle = handle_on(model)
    if handle is None:
        return
    names = [placed.site.name for placed in handle.placed]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    raise InputError(
        f"The model is regularized already; call remove() on the handle that td.{handle.made_by} returned "
        f"for {', '.join(names[:3])}{more}, or td.handle_of(model).remove(), before a second. To change "
        "rates alone, write td.handle_of(model).update({...})."
    )


def refuse_shared_rates(
    model: nn.Module, sites: Iterable[Site], assignments: Iterable[tuple[Site, Rule]]
) -> None:
    """Raise InputError where a place that drops by a number is to keep one that other places must lose.

    A layer at such a place is that number: where it is also the rate of others they would drop by it beside
    their layers, and where only they have rules it would be silenced with them.
    """
    rules = {site.name: rule for site, rule in assignments}
    sharing: dict[str, list[Site]] = {}
    for site in sites:
        if site.rate is not None and site.access != "none":
            sharing.setdefault(site.rate, []).append(site)
    for rate, places in sharing.items():
        ruled = [site for site in places if site.name in rules]
        others = [site for site in places if site.access != "rate"]
        for site in places if ruled and others else ():
            if site.access == "rate" and rate_to_come(model, site, rules.get(site.name)) > 0:
                raise InputError(
                    f"{rate} is the rate of {site.path} ({site.kind}) and of {others[0].path} "
                    f"({others[0].kind}) too, so they cannot have rates of their own; give one of them a "
                    f"dropout of its own in the code, or {site.kind} the rate 0."
                )


def rate_to_come(model: nn.Module, site: Site, rule: Rule | None) -> float:
    """Return the largest rate at a place: a rule's, or without one the model's own."""
    if rule is None:
        return own_rate(model, site) or 0.0
    return 1.0 if rule.p is None else max(rule.p.bounds()) * rule.factor(site)
