"""Adapters around a model: the model inside, and the dropout that LoRA has of its own."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

from torch import nn

from ._hugging_face import joined
from ._site import Site
from ._width import in_features


def inside_adapter(model: nn.Module) -> str:
    """Return the path of the model that PEFT has wrapped; empty for any other model."""
    if not (hasattr(model, "peft_config") and hasattr(model, "get_base_model")):
        return ""
    inner = cast(Any, model).get_base_model()
    return next(path for path, module in model.named_modules() if module is inner)


def below(prefix: str, site: Site) -> Site:
    """Return a site of an inner model as one of the outer model."""
    return replace(
        site,
        path=joined(prefix, site.path),
        rate=None if site.rate is None else joined(prefix, site.rate),
        owner=None if site.owner is None else joined(prefix, site.owner),
    )


def is_lora_dropout(path: str) -> bool:
    """Return whether a module is what PEFT lets act before the matrices of a LoRA, by its path."""
    owner, _, adapter = path.rpartition(".lora_dropout.")
    return bool(owner and adapter) and "." not in adapter


def lora_sites(model: nn.Module, sites: list[Site]) -> Iterator[Site]:
    """Yield the dropouts before LoRA's matrices, one per adapter and adapted layer."""
    blocks = [site for site in sites if site.kind == "block"]
    for path, module in model.named_modules():
        if not is_lora_dropout(path) or not isinstance(module, nn.Dropout | nn.Identity):
            continue
        owner = path.rpartition(".lora_dropout.")[0]
        block = next((site for site in blocks if path.startswith(f"{site.path}.")), None)
        width = in_features(model.get_submodule(owner))
        site = Site(path=path, kind="lora", access="module", width=width)
        if block is not None:
            site = replace(
                site, block=block.block, n_blocks=block.n_blocks, causal=block.causal, owner=block.owner
            )
        yield site
