"""What a block still adds when everything is dropped at the ends of its branches."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..sites.observation.inputs import call
from ..sites.observation.lineage import tensors_in
from ..sites.observation.restore import unchanged

# Below it a gradient is what rounding leaves.
SMALLEST = 1e-7


def unreached(model: nn.Module, inputs: Any, blocks: Iterable[str]) -> dict[str, str]:
    """Return, for each block with matrices that still change what the model returns, the first one's module.

    Args:
        model: the model, with everything dropped that is to be dropped.
        inputs: what it is called with.
        blocks: the paths of its blocks.
    """
    owners: dict[str, str] = {}
    for block in blocks:
        for path, part in model.get_submodule(block).named_modules():
            if any(parameter.ndim > 1 for parameter in part.parameters(recurse=False)):
                owners[f"{block}.{path}".strip(".")] = block
    parameters = [
        (path, parameter)
        for path in owners
        for parameter in model.get_submodule(path).parameters(recurse=False)
        if parameter.ndim > 1 and parameter.requires_grad
    ]
    found: dict[str, str] = {}
    for (path, _), gradient in zip(
        parameters, gradients(model, inputs, [p for _, p in parameters]), strict=True
    ):
        if gradient is not None and bool(gradient.abs().max() > SMALLEST):
            found.setdefault(owners[path], path)
    return found


def gradients(model: nn.Module, inputs: Any, parameters: list[nn.Parameter]) -> tuple[Tensor | None, ...]:
    """Return what some parameters change in what a model returns in training; None where nothing."""
    nothing = (None,) * len(parameters)
    with unchanged(model), torch.enable_grad():
        model.train()
        torch.manual_seed(0)
        outputs = [value for value in tensors_in(call(model, inputs)) if value.requires_grad]
        # Weights of both signs, for a softmax returns what sums to one.
        weighted = [
            (value * torch.linspace(-1, 1, value.numel(), device=value.device).sin().view(value.shape)).sum()
            for value in outputs
        ]
        if not weighted or not parameters:
            return nothing
        return torch.autograd.grad(sum(weighted, torch.zeros(())), parameters, allow_unused=True)
