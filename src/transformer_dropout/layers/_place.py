"""A layer at its place: what it is made from there, and where it cannot act."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import InputError

if TYPE_CHECKING:
    from ._base import DropoutLayer


class SiteLike(Protocol):
    """What a layer may ask of the site it is made for; `Site` says what each word means."""

    @property
    def path(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def access(self) -> str: ...
    @property
    def width(self) -> int | None: ...
    @property
    def causal(self) -> bool: ...
    @property
    def batch_first(self) -> bool: ...


def arguments_for(
    layer: "type[DropoutLayer]", site: SiteLike, arguments: Mapping[str, Any], inputs: int | None
) -> dict[str, Any]:
    """Return a recipe's arguments with those that the constructor takes from the site.

    Raises:
        InputError: when the site has no width that the layer needs, or an argument is missing.
    """
    given = dict(arguments)
    parameters = inspect.signature(layer).parameters
    if "width" in parameters:
        if site.width is None:
            raise InputError(
                f"{layer.__name__} needs a place with a width, and {site.path} ({site.kind}) has none; "
                "use it at mlp_output, attention_output, mlp_hidden or embedding."
            )
        given["width"] = site.width
    if "inputs" in parameters:
        given["inputs"] = inputs
    if "causal" in parameters:
        given.setdefault("causal", site.causal)
    named = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    missing = [n for n, p in named.items() if p.default is p.empty and n not in given]
    if missing:
        raise InputError(f"{layer.__name__} at {site.path} ({site.kind}) needs {', '.join(missing)}.")
    return given


def refuse_place(layer: "type[DropoutLayer]", site: SiteLike) -> None:
    """Raise InputError when the tensor at a site is not of the kind that a layer acts on."""
    place = f"{site.path} ({site.kind})"
    if site.access == "rate" and not layer.is_plain_dropout:
        raise InputError(
            f"At {place} the model's own code drops and only the rate can be set: use Dropout there, not "
            f"{layer.__name__}."
        )
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
    if not site.batch_first and (layer.looks_at_tokens or layer.tells_samples_apart):
        raise InputError(
            f"{layer.__name__} needs tensors (batch, tokens, width), but {place} has the tokens first; build "
            "the layer with batch_first=True."
        )
