"""From a model to its sites."""

from torch import nn

from ..errors import InputError
from ._adapters import below, inside_adapter, lora_sites
from ._decoder import decoder_sites
from ._generic import generic_sites
from ._hugging_face import family_of, hugging_face_sites, is_hugging_face
from ._site import KINDS, Site


def find_sites(model: nn.Module) -> list[Site]:
    """Return the places of a model where a layer can act, in the order of the forward pass.

    A table serves the project's decoder and the known Hugging Face families; any other model is read off
    its structure.

    Raises:
        InputError: for a model in which no place is found.
    """
    prefix = inside_adapter(model)
    if prefix:
        return [below(prefix, site) for site in find_sites(model.get_submodule(prefix))]
    sites = own_sites(model)
    return sites + list(lora_sites(model, sites))


def own_sites(model: nn.Module) -> list[Site]:
    """Return the places of a model without those of adapters in it.

    Raises:
        InputError: for a model in which no place is found.
    """
    family = family_of(model) if is_hugging_face(model) else None
    if family is not None:
        return hugging_face_sites(model, family)
    # By its name, so that the training floor need not be imported from here.
    sites = decoder_sites(model) if type(model).__name__ == "Decoder" else generic_sites(model)
    if not sites:
        raise InputError(
            f"No place for a layer was found in a {type(model).__name__}: it has no blocks with attention "
            "and no chain of linear layers; name its places yourself, td.regularize_(model, recipe, "
            "sites=[td.Site(path=..., kind=..., access='output')])."
        )
    return sites


def missing_kinds(model: nn.Module) -> dict[str, str]:
    """Return the kinds of sites that a model has no place for, each with the reason."""
    found = {site.kind for site in find_sites(model)}
    nothing = f"nothing like it was found in {type(model).__name__}"
    return {kind: nothing for kind in KINDS if kind not in found}
