"""Weight decay on what it should leave alone."""

from collections.abc import Iterator

import torch
from torch import nn

from ..terms.weights import is_norm
from ._events import Finding, patterns


def weight_decay_on_norms(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Finding]:
    """Find normalization parameters in optimizer groups with weight decay."""
    decayed = {
        id(parameter): group["weight_decay"]
        for group in optimizer.param_groups
        if group.get("weight_decay")
        for parameter in group["params"]
    }
    norms = {
        f"{path}.{name}".lstrip("."): decayed[id(parameter)]
        for path, module in model.named_modules()
        if is_norm(module)
        for name, parameter in module.named_parameters(recurse=False)
        if id(parameter) in decayed
    }
    for site in patterns(norms):
        yield Finding(
            code="weight-decay-on-norms",
            site=site,
            message=f"The optimizer decays it with {next(iter(norms.values())):.4g}, which pulls the "
            "scale of a normalization to 0. Put parameters of norms, and all with one dimension, in a group "
            "with weight_decay=0.",
        )
