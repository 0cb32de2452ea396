"""What is special about models of Hugging Face, and the site of one place read off code."""

from collections.abc import Iterator

from torch import nn

from ._places import Place
from ._site import Kind, Site
from ._width import width_of


def is_hugging_face(model: nn.Module) -> bool:
    """Return whether a model is one of transformers', without importing it."""
    return hasattr(model, "config") and hasattr(model, "base_model_prefix")


def base_path(model: nn.Module) -> str:
    """Return the path of the model without its head; empty where it has none."""
    prefix = str(model.base_model_prefix)
    return prefix if hasattr(model, prefix) else ""


def site_at(
    model: nn.Module,
    kind: Kind,
    prefix: str,
    place: Place,
    *,
    causal: bool,
    block: int | None = None,
    n_blocks: int = 0,
    owner: str | None = None,
) -> Iterator[Site]:
    """Yield the site of one place, nothing where the model lacks the module."""
    path = joined(prefix, place.path)
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return
    if (
        place.access == "module"
        and not isinstance(module, nn.Dropout | nn.Identity)
        and not is_dropout(module)
    ):
        return
    yield Site(
        path=path,
        kind=kind,
        access=place.access,
        block=block,
        n_blocks=n_blocks,
        width=None if kind == "attention_weights" else width_of(model, kind, place.access, module),
        rate=None if place.rate is None else joined(prefix, place.rate),
        owner=owner,
        causal=causal,
    )


def is_dropout(module: nn.Module) -> bool:
    """Return whether a module is a dropout of a model's own making: a rate and no parameters."""
    return "Dropout" in type(module).__name__ and next(module.parameters(), None) is None


def joined(prefix: str, path: str) -> str:
    """Join two module paths, either of which may be empty."""
    return ".".join(part for part in (prefix, path) if part)
