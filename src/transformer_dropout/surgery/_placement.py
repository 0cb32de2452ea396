"""From rules and sites to layers, before anything is changed."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from ..errors import InputError
from ..layers import DropoutLayer
from ..recipe import Recipe, Rule
from ..sites import Site
from ._apply import buffer_name, child_name, reader_of


def assign(sites: list[Site], recipe: Recipe) -> list[tuple[Site, Rule]]:
    """Give each site the first rule that matches it.

    Raises:
        InputError: for a rule that no site is left for; the message lists the sites there are.
    """
    sites = [site for site in sites if site.access != "none"]
    pairs = [
        (site, rule)
        for site in sites
        if (rule := next((rule for rule in recipe.rules if rule.matches(site)), None)) is not None
    ]
    for rule in recipe.rules:
        if any(used is rule for _, used in pairs):
            continue
        if any(rule.matches(site) for site in sites):
            raise InputError(
                f"The rule for {rule.select!r} never acts: earlier rules take all its sites; move it up."
            )
        listing = ", ".join(f"{site.path} ({site.kind})" for site in sites)
        within = "" if rule.blocks is None else f" in the blocks {list(rule.blocks)}"
        raise InputError(f"The selector {rule.select!r} matches no site{within}; the sites are: {listing}.")
    return pairs


def refuse_second_regularization(model: nn.Module, sites: Iterable[Site]) -> None:
    """Raise InputError when a site already holds a layer of an earlier `regularize_`."""
    for site in sites:
        module, name = model.get_submodule(site.path), child_name(site)
        if site.access == "rate":
            module, name = model.get_submodule(reader_of(site)), buffer_name(site)
        if isinstance(module, DropoutLayer) or hasattr(module, name):
            raise InputError(
                f"The model is regularized already, as part of a larger one: {site.path} has a layer; call "
                "remove() on the handle of the first td.regularize_ before a second."
            )


def build_layer(site: Site, rule: Rule, source: nn.Module | None, inputs: int | None = None) -> DropoutLayer:
    """Make the layer of a rule for a site.

    Args:
        site: where it will act.
        rule: what it is.
        source: the module that the layers of the rule share, if there is one.
        inputs: channels of the input of the plain MLP around the site, if there is one.

    Raises:
        InputError: when the layer cannot act there, or its penalty and the rule's weight do not go together.
    """
    arguments: dict[str, Any] = dict(rule.arguments)
    if source is not None:
        arguments["source"] = source
    if rule.p is not None:
        arguments["p"] = rule.rate(site, 0.0)
    rule.check_rates(site)
    layer = rule.layer.for_site(site, arguments, inputs=inputs)
    if rule.weight is not None and not layer.has_penalty:
        raise InputError(
            f"The rule for {rule.select!r} has a weight, but its {rule.layer.__name__} has no penalty to "
            "weigh; take the weight out or name a penalty."
        )
    if rule.weight is None and rule.arguments.get("penalty") is not None:
        raise InputError(
            f"The rule for {rule.select!r} names a penalty but no weight, so it would do nothing; add weight."
        )
    return layer
