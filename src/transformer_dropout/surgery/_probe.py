"""A model held still while its places are measured: probes drop nothing or all, and nothing else drops."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import RateLayer
from ..sites import Site
from ..sites.observation.inputs import call
from ..sites.observation.lineage import tensors_in
from ..sites.observation.restore import unchanged
from ..sites.reading.rates import rates_of
from ._apply import Surgery
from ._outputs import same

# Where the model's own code drops, a rate of 1 would divide by what is kept.
NEARLY_ALL = 0.9
# How far numbers may lie apart that rounding alone tells apart, in single and in double precision.
ROUNDING, ROUNDING_IN_DOUBLE = 1e-4, 1e-6


class Probe(RateLayer):
    """Keeps everything at a rate of 0 and nothing at 1, without drawing; takes note of what it sees."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__(p)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        return x * (1 - self.p) if self.training and self.p else x


@contextmanager
def nothing_else_drops(model: nn.Module, sites: Iterable[Site]) -> Iterator[None]:
    """Hold every rate of the model's own at 0, those that stand in its code too."""
    before = [(held, name, held[name]) for _, held, name in rates_of(model)]
    surgery = Surgery(model)
    try:
        for site in sites:
            surgery.silence(site)
            if site.access == "rate":
                surgery.write_rate(site, 0.0)
        for held, name, _ in before:
            held[name] = 0.0
        yield
    finally:
        surgery.undo()
        for held, name, value in before:
            held[name] = value


@contextmanager
def weights_begun(model: nn.Module) -> Iterator[None]:
    """Draw anew the weights that are next to zero: behind them nothing shows, as in a new LoRA."""
    drawn = []
    with torch.no_grad():
        # A frozen norm holds its weights as buffers.
        for parameter in [*model.parameters(), *(buffer for buffer in model.buffers() if buffer.ndim == 1)]:
            size = parameter.abs().max() if parameter.numel() and parameter.is_floating_point() else 1.0
            if size < 1e-4:
                drawn.append((parameter, parameter.clone()))
                generator = torch.Generator().manual_seed(len(drawn))
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in drawn:
                parameter.copy_(value)


@contextmanager
def layers_at(model: nn.Module, sites: Sequence[Site], p: float) -> Iterator[list[Probe]]:
    """Put a layer at each of some places, for the length of a ``with`` block."""
    surgery, probes = Surgery(model), []
    try:
        for site in sites:
            if site.access == "rate":
                surgery.write_rate(site, min(p, NEARLY_ALL))
            else:
                probe = Probe(p)
                surgery.place(site, probe)
                probes.append(probe)
        yield probes
    finally:
        surgery.undo()


def results(model: nn.Module, inputs: Any, *, training: bool) -> list[Tensor]:
    """Return the numbers that a model returns, under a fixed seed."""
    # A batch norm in training, and whatever else is remembered, begins anew each time.
    with unchanged(model), torch.no_grad():
        model.train(training)
        torch.manual_seed(0)
        output = call(model, inputs)
    return [value.clone() for value in tensors_in(output) if value.is_floating_point()]


def unmoved(
    model: nn.Module, inputs: Any, site: Site, p: float, before: list[Tensor], after: list[Tensor]
) -> bool:
    """Return whether a layer at a place leaves what a model returns as it was, but for rounding.

    That is in training for a layer that keeps everything, and in evaluation for one that drops everything.
    What is computed in another order, as torch's own layers are in evaluation once one has a hook, is rounded
    otherwise, and a norm of numbers that are nearly alike, or a choice of the largest, makes much of that. So
    what differs is measured again in double precision, where rounding is a billion times smaller and a fault
    is as large as before.

    Args:
        model: the model.
        inputs: what it is called with.
        site: the place.
        p: the layer's probability of dropping, 0 in training and 1 in evaluation.
        before: what the model returns without a layer.
        after: what it returns with the layer.
    """
    training = p == 0.0
    if same(after, before, ROUNDING if training else None):
        return True
    try:
        double = deepcopy(model).double()
        inputs = in_double(inputs)
        before = results(double, inputs, training=training)
        with layers_at(double, [site], p):
            after = results(double, inputs, training=training)
    except (RuntimeError, TypeError, ValueError):
        # Some code knows single precision alone.
        return False
    return same(after, before, ROUNDING_IN_DOUBLE)


def in_double(inputs: Any) -> Any:
    """Return what a model is called with, in double precision."""
    if isinstance(inputs, Tensor):
        return inputs.double() if inputs.is_floating_point() else inputs
    if isinstance(inputs, Mapping):
        return {name: in_double(value) for name, value in inputs.items()}
    return type(inputs)(map(in_double, inputs)) if isinstance(inputs, tuple | list) else inputs
