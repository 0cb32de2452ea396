"""From rules and sites to layers, before anything is changed."""

import inspect
from collections.abc import Iterable
from typing import Any

from torch import nn

from ..errors import InputError
from ..layers import Dropout, DropoutLayer, DropPath
from ..recipe import Recipe, Rule
from ..sites import Site
from ._apply import buffer_name, child_name, reader_of


def assign(sites: list[Site], recipe: Recipe) -> list[tuple[Site, Rule]]:
    """Give each site the first rule that matches it.

    Raises:
        InputError: for a rule that no site is left for; the message lists the sites there are.
    """
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
                "The model is regularized already; call remove() on the handle of the first "
                "td.regularize_ before a second."
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
    parameters = inspect.signature(rule.layer).parameters
    if "width" in parameters:
        if site.width is None:
            raise InputError(
                f"{rule.layer.__name__} needs a place with a width, and {site.path} ({site.kind}) has none; "
                "use it at mlp_output, attention_output, mlp_hidden or embedding."
            )
        arguments["width"] = site.width
    if "inputs" in parameters:
        arguments["inputs"] = inputs
    if source is not None:
        arguments["source"] = source
    elif "causal" in parameters:
        arguments.setdefault("causal", site.causal)
    if rule.p is not None:
        arguments["p"] = rule.rate(site, 0.0)
    named = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    missing = [n for n, p in named.items() if p.default is p.empty and n not in arguments]
    if missing:
        raise InputError(f"{rule.layer.__name__} in the rule for {rule.select!r} needs {', '.join(missing)}.")
    if site.access == "rate" and rule.layer is not Dropout:
        raise InputError(
            f"At {site.path} ({site.kind}) the model's own code drops and only the rate can be set: use "
            f"Dropout there, not {rule.layer.__name__}."
        )
    refuse_other_tensors(site, rule.layer)
    rule.check_rates(site)
    if not site.batch_first and (rule.layer.looks_at_tokens or rule.layer is DropPath):
        raise InputError(
            f"{rule.layer.__name__} needs tensors (batch, tokens, width), but {site.path} ({site.kind}) has "
            "the tokens first; build the layer with batch_first=True."
        )
    layer = rule.layer(**arguments)
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


def refuse_other_tensors(site: Site, layer: type[DropoutLayer]) -> None:
    """Raise InputError when a layer acts on scores, heads or tokens, and the tensor at a site has none."""
    place = f"{site.path} ({site.kind})"
    if layer.acts_on == "scores" and site.access != "attention":
        raise InputError(
            f"{layer.__name__} acts on the scores before the softmax, which {place} does not show; use it at "
            "attention_weights of a model whose attention is reached by a function."
        )
    if layer.acts_on == "heads" and site.width is not None:
        raise InputError(
            f"{layer.__name__} acts on the heads of an attention, and {place} has none; use it at "
            "attention_weights."
        )
    if layer.acts_on == "tokens" and site.kind == "attention_weights":
        raise InputError(f"{layer.__name__} acts on whole tokens, and {place} has none; use it at embedding.")
