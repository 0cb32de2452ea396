"""From a model to its sites."""

from collections.abc import Callable

from torch import nn

from ..errors import InputError
from ._decoder import decoder_sites
from ._site import Site

# Keyed by the model's class name, so that no model has to be imported to be known.
FAMILIES: dict[str, Callable[[nn.Module], list[Site]]] = {"Decoder": decoder_sites}


def find_sites(model: nn.Module) -> list[Site]:
    """Return the places of a model where a layer can act, in the order of the forward pass.

    Raises:
        InputError: for a model of an unknown family.
    """
    family = type(model).__name__
    if family not in FAMILIES:
        raise InputError(f"No sites are known for a {family}; known models: {', '.join(sorted(FAMILIES))}.")
    return FAMILIES[family](model)
