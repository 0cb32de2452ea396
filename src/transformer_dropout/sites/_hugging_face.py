"""From a Hugging Face model to its sites, with the table of its family."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from ._families import BY_MODEL_TYPE
from ._places import Family, Place, Stack
from ._site import Kind, Site
from ._width import width_of


def is_hugging_face(model: nn.Module) -> bool:
    """Return whether a model is one of transformers', without importing it."""
    return hasattr(model, "config") and hasattr(model, "base_model_prefix")


def family_of(model: nn.Module) -> Family | None:
    """Return the table of a model's family, None when there is none."""
    return BY_MODEL_TYPE.get(getattr(model.config, "model_type", ""))


def hugging_face_sites(model: nn.Module, family: Family) -> list[Site]:
    """Return the sites of a Hugging Face model, in the order of its tables."""
    prefix = base_path(model)
    sites: list[Site] = []
    for index, place in enumerate(family.embedding):
        stack = family.stacks[min(index, len(family.stacks) - 1)]
        sites.extend(site_at(model, "embedding", prefix, place, **whole_stack(model, stack, prefix)))
    for stack in family.stacks:
        sites.extend(stack_sites(model, stack, prefix))
    return sites + head_sites(model, family, prefix)


def base_path(model: nn.Module) -> str:
    """Return the path of the model without its head; empty where it has none."""
    prefix = str(model.base_model_prefix)
    return prefix if hasattr(model, prefix) else ""


def head_sites(model: nn.Module, family: Family, prefix: str) -> list[Site]:
    """Return the sites behind the blocks: the model's own dropouts there, else the input of its head."""
    where = [whole_stack(model, stack, prefix) for stack in family.stacks]
    found = [
        site
        for stack, at in zip(family.stacks, where, strict=True)
        for place in stack.end
        for site in site_at(model, "classifier", prefix, place, **at)
    ]
    for place in family.head:
        found.extend(site_at(model, "classifier", "", place, **where[-1]))
    return [site for site in found if site.access == "module" or site.rate is not None] or found[:1]


def whole_stack(model: nn.Module, stack: Stack, prefix: str) -> dict[str, Any]:
    """Return what a site outside the blocks shares with the blocks of its stack."""
    config = getattr(model, "config", None)
    # An encoder's blocks can be used as a decoder of their own.
    decodes = getattr(config, "is_decoder", False) and not getattr(config, "is_encoder_decoder", False)
    return {
        "n_blocks": len(block_paths(model, joined(prefix, stack.path))),
        "causal": stack.causal or bool(decodes),
        "owner": joined(prefix, stack.owner),
    }


def stack_sites(model: nn.Module, stack: Stack, prefix: str) -> Iterator[Site]:
    """Yield the sites of one stack of blocks, block by block."""
    blocks = block_paths(model, joined(prefix, stack.path))
    for index, path in enumerate(blocks):
        where: dict[str, Any] = {"block": index, **whole_stack(model, stack, prefix)}
        for kind, places in stack.places.items():
            for place in places:
                yield from site_at(model, kind, path, place, **where)
        for site in site_at(model, "block", path, Place(path="", access="block"), **where):
            yield site if stack.skips is None else replace(site, rate=joined(prefix, stack.skips))


def block_paths(model: nn.Module, pattern: str) -> list[str]:
    """Return the paths of the blocks in the lists that a pattern names."""
    regex = re.compile(pattern.replace(".", r"\.").replace("*", r"\d+") + r"\.\d+")
    return [name for name, _ in model.named_modules() if regex.fullmatch(name)]


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
