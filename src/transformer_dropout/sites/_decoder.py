"""The sites of the project's reference decoder."""

from typing import Any

from torch import nn

from ._site import Access, Kind, Site

# kind, module inside a block, access, width as a multiple of the model's width.
IN_EACH_BLOCK: tuple[tuple[Kind, str, Access, int | None], ...] = (
    ("attention_weights", "attention", "attention", None),
    ("attention_output", "attention", "output", 1),
    ("mlp_hidden", "mlp.activation", "output", 4),
    ("mlp_output", "mlp", "output", 1),
)

REFERENCE = f"{__name__.partition('.')[0]}.tasks.language.decoder.Decoder"


def is_decoder(model: nn.Module) -> bool:
    """Return whether a model is the project's reference decoder, without importing it."""
    made = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(model).__mro__)
    return REFERENCE in made


def decoder_sites(model: nn.Module) -> list[Site]:
    """Return the sites of a ``Decoder``."""
    config: Any = model.config
    width, n_blocks = config.width, config.blocks
    sites = [
        Site(
            path="embedding", kind="embedding", access="output", n_blocks=n_blocks, width=width, found="table"
        )
    ]
    for block in range(n_blocks):
        for kind, path, access, multiple in IN_EACH_BLOCK:
            sites.append(
                Site(
                    path=f"blocks.{block}.{path}",
                    kind=kind,
                    access=access,
                    block=block,
                    n_blocks=n_blocks,
                    width=None if multiple is None else multiple * width,
                    found="table",
                )
            )
        path = f"blocks.{block}"
        sites.append(
            Site(
                path=path,
                kind="block",
                access="block",
                block=block,
                n_blocks=n_blocks,
                width=width,
                found="table",
            )
        )
    last = Site(
        path="norm", kind="classifier", access="output", n_blocks=n_blocks, width=width, found="table"
    )
    return [*sites, last]
