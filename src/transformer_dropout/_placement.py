"""How a layer gets into a model: from rules to sites, and the surgery at each kind of access."""

import inspect
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .errors import InputError
from .layers import DropoutLayer
from .layers.dropout import Dropout
from .recipe import Recipe, Rule
from .sites import Site


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
        raise InputError(f"The selector {rule.select!r} matches no site; the sites are: {listing}.")
    return pairs


def refuse_second_regularization(model: nn.Module, sites: Iterable[Site]) -> None:
    """Raise InputError when a site already holds a layer of an earlier `regularize_`."""
    for site in sites:
        if hasattr(model.get_submodule(site.path), child_name(site)):
            raise InputError(
                "The model is regularized already; call remove() on the handle of the first "
                "td.regularize_ before a second."
            )


def child_name(site: Site) -> str:
    """Return the name that a site's layer has as a child of the site's module."""
    return f"{site.kind}_dropout"


def build_layer(site: Site, rule: Rule, source: nn.Module | None) -> DropoutLayer:
    """Make the layer of a rule for a site.

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
    if source is not None:
        arguments["source"] = source
    if rule.p is not None:
        arguments["p"] = rule.rate(site, 0.0)
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in arguments]
    if missing:
        raise InputError(f"{rule.layer.__name__} in the rule for {rule.select!r} needs {', '.join(missing)}.")
    layer = rule.layer(**arguments)
    if rule.weight is not None and not layer.has_penalty:
        raise InputError(
            f"The rule for {rule.select!r} has a weight, but its {rule.layer.__name__} has no penalty to weigh; "
            "take the weight out or name a penalty."
        )
    if rule.weight is None and rule.arguments.get("penalty") is not None:
        raise InputError(
            f"The rule for {rule.select!r} names a penalty but no weight, so it would do nothing; add weight."
        )
    return layer


class Placement:
    """One child module added to a model with the hook or function that runs it, and the way back."""

    def __init__(self, parent: nn.Module, name: str, child: nn.Module) -> None:
        self.parent, self.name = parent, name
        reference = next(parent.parameters(), None)
        parent.add_module(name, child if reference is None else child.to(reference.device))
        self._hook: RemovableHandle | None = None

    def on_output(self) -> "Placement":
        """Let the child act on what the parent returns."""
        self._hook = self.parent.register_forward_hook(partial(apply_child, self.name))
        return self

    def beside_output(self) -> "Placement":
        """Let the child see what the parent returns, and leave that as it is."""
        self._hook = self.parent.register_forward_hook(partial(show_child, self.name))
        return self

    def on_attention(self) -> "Placement":
        """Let the child act on the attention weights."""
        self.parent.attend = attend_with_layer
        return self

    def undo(self) -> None:
        """Take the child out."""
        if self._hook is not None:
            self._hook.remove()
        else:
            # The function of the class shows through again.
            del self.parent.attend
        delattr(self.parent, self.name)


# The hooks look the child up by name, so that a deep copy of the model runs its own layers.
def apply_child(name: str, module: nn.Module, arguments: tuple, output: Tensor) -> Tensor:
    """Forward hook: return the child's result in place of the output."""
    return getattr(module, name)(output)


def show_child(name: str, module: nn.Module, arguments: tuple, output: Tensor) -> None:
    """Forward hook: run the child on the output."""
    getattr(module, name)(output)


def attend_with_layer(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention whose weights pass through the module's ``attention_weights_dropout``."""
    layer = module.attention_weights_dropout
    if isinstance(layer, Dropout) and not torch.compiler.is_compiling():
        # The fused kernel does not look at `training`, so the rate must be 0 in evaluation.
        p = layer.p if layer.training else 0.0
        return nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=p)
    tokens = query.shape[-2]
    hidden = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).triu(1)
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
    return layer(weights) @ value
