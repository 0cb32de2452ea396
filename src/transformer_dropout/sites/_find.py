"""From a model to its sites."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..errors import InputError, first_line
from ..kernels.torch_internals import is_compiled
from ._adapters import below, inside_adapter, lora_sites
from ._decoder import decoder_sites, is_decoder
from ._generic import generic_sites
from ._own_inputs import own_inputs
from ._site import KINDS, Site
from ._sites import Sites
from .observation.restore import refuse_what_cannot_be_watched
from .reading.read import read_run


def find_sites(model: nn.Module, inputs: Any = None) -> Sites:
    """Return the places of a model where a layer can act, in the order of the forward pass.

    They come from one observed training forward: what is added to a residual stream, where a softmax meets a
    product, which rate each random operation is given. Names and the order of modules mean nothing. Where the
    model cannot be run, its code is read instead, and `Site.found` says so. Modes, attributes, buffers and
    the random state are put back.

    Args:
        model: any module.
        inputs: what the model is called with: a dict of keywords, a tuple of positional arguments, or the one
            tensor or object that it takes; None for small ones made from what the model says of itself.

    Raises:
        InputError: for a model in which no place is found, or that cannot be run with these inputs.
    """
    prefix = inside_adapter(model)
    if prefix:
        return Sites(below(prefix, site) for site in find_sites(model.get_submodule(prefix), inputs))
    sites = own_sites(model, inputs)
    return Sites(sites + list(lora_sites(model, sites)))


def own_sites(model: nn.Module, inputs: Any = None) -> list[Site]:
    """Return the places of a model without those of adapters in it.

    Raises:
        InputError: as `find_sites`.
    """
    if is_decoder(model):
        return decoder_sites(model)
    sites = observed_sites(model, inputs)
    if sites is None:
        sites = [replace(site, found="code") for site in generic_sites(model)]
    if not any(site.access != "none" for site in sites):
        if any(parameter.is_meta for parameter in model.parameters()):
            raise InputError(
                f"This {type(model).__name__} has no data (device meta), and its places show in a run only; "
                "put them in first with model.to_empty(device='cpu'), or give sites= of its like."
            )
        raise InputError(
            f"No place for a layer was found in a {type(model).__name__}: it has no blocks with attention "
            "and no chain of linear layers, or needs inputs=, what it is called with, to show them; name its "
            "places yourself, td.regularize_(model, recipe, sites=[td.Site(path=..., kind=..., "
            "access='output')])."
        )
    return sites


def observed_sites(model: nn.Module, inputs: Any) -> list[Site] | None:
    """Return the sites that a run shows; None where no inputs were given and none that could be made served.

    Raises:
        InputError: when the model cannot be run with the inputs that were given, or is compiled.
    """
    if inputs is not None:
        refuse_what_cannot_be_watched(model, "td.find_sites")
        try:
            return read_run(model, inputs)
        except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
            raise InputError(f"The model could not be run with these inputs: {first_line(error)}") from error
    try:
        refuse_what_cannot_be_watched(model, "td.find_sites")
    except InputError:
        if is_compiled(model) or isinstance(model, torch.jit.ScriptModule):
            raise
        return None
    for candidate in own_inputs(model):
        try:
            return read_run(model, candidate)
        # Whatever a stranger's code says of inputs that it was not made for.
        except Exception:
            continue
    return None


def missing_kinds(model: nn.Module, inputs: Any = None) -> dict[str, str]:
    """Return the kinds of sites that a model has no place for, each with the reason."""
    found = {site.kind for site in find_sites(model, inputs)}
    nothing = f"nothing like it was found in {type(model).__name__}"
    return {kind: nothing for kind in KINDS if kind not in found}
