"""Places that prove themselves in one go, by gradients; those that do not are looked at one by one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import RateLayer
from ..sites import Site
from ..sites.observation.inputs import call
from ..sites.observation.lineage import tensors_in
from ..sites.observation.restore import unchanged
from ._apply import Surgery

ROUNDING = 1e-4


class Lever(RateLayer):
    """Multiplies what it is given, in training, by a number whose gradient tells whether that matters."""

    def __init__(self) -> None:
        super().__init__(0.0)
        self.seen: list[tuple[int, ...]] = []
        self.number: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        return x if self.number is None or not self.training else x * self.number


def proven_together(
    model: nn.Module,
    inputs: Any,
    sites: Sequence[Site],
    before: tuple[list[Tensor], list[Tensor]],
    results: Callable[..., list[Tensor]],
    same: Callable[..., bool],
) -> set[str]:
    """Return the names of places that ran, are as wide as is said, and change training and nothing else.

    With a layer at all of them two forwards must give what they gave without, one more must pass gradients
    to each, and with all layers taken out the model must be what it was.

    Args:
        model: the model.
        inputs: what it is called with.
        sites: the places; those where a number is set are left out.
        before: what it returns without a layer, in training and in evaluation.
        results: runs the model.
        same: compares what it returned.
    """
    keys, surgery = list(model.state_dict()), Surgery(model)
    levers: dict[str, Lever] = {}
    try:
        for site in sites:
            if site.access != "rate":
                surgery.place(site, lever := Lever())
                levers[site.name] = lever
        train = results(model, inputs, training=True)
        moving = moved_by(model, inputs, levers)
        for lever in levers.values():
            # In evaluation nothing may act, whatever the number is.
            lever.number = torch.zeros(())
        quiet = results(model, inputs, training=False)
    finally:
        surgery.undo()
    after = results(model, inputs, training=True), results(model, inputs, training=False)
    left = list(model.state_dict()) == keys and same(after[0], before[0]) and same(after[1], before[1])
    if not (left and same(train, before[0], ROUNDING) and same(quiet, before[1])):
        return set()
    return {
        site.name for site in sites if site.name in moving and is_as_wide(site, levers[site.name].seen[0])
    }


def moved_by(model: nn.Module, inputs: Any, levers: dict[str, Lever]) -> set[str]:
    """Return the names of the levers that change what the model returns in training."""
    for lever in levers.values():
        lever.number = torch.ones((), requires_grad=True)
    with unchanged(model), torch.enable_grad():
        model.train()
        torch.manual_seed(0)
        values = [value for value in tensors_in(call(model, inputs)) if value.requires_grad]
        if not values:
            return set()
        # Weighted unevenly, or what a norm returns would add up to the same.
        sums = [(value.float() * uneven(value)).sum() for value in values]
        numbers = [lever.number for lever in levers.values() if lever.number is not None]
        try:
            found = torch.autograd.grad(torch.stack(sums).sum(), numbers, allow_unused=True)
        except RuntimeError:
            return set()
    return {
        name
        for name, gradient in zip(levers, found, strict=True)
        if gradient is not None and bool(gradient.isfinite() & (gradient != 0))
    }


def uneven(value: Tensor) -> Tensor:
    """Return weights between -1 and 1 in a tensor's shape."""
    return torch.linspace(-9, 9, value.numel(), device=value.device).sin().view_as(value)


def is_as_wide(site: Site, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor has the channels of a place: last or, as convolutions have it, second."""
    return site.width is None or site.width in (shape[-1], shape[min(1, len(shape) - 1)])
