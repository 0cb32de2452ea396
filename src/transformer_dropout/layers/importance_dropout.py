"""Importance dropout: units that matter are dropped less, at the same mean rate."""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from .. import functional
from ..errors import InputError, check_choice
from ..kernels.torch_internals import inside_backward
from ._base import RateLayer


def rates_by_importance(importance: Tensor, p: float, spread: float) -> Tensor:
    """Return one rate per unit, falling with its importance, whose mean is ``p``.

    Formula: ``p_i = p + spread * min(p, 1 - p) * (1 - 2 rank_i)``, where ``rank_i`` is the share of the other
    units that are less important, ties counting half: 0 for the least important unit, 1 for the most.

    Ranks rather than the importances themselves: their mean is exactly one half whatever the distribution,
    and the few channels that are a hundred times larger than the rest do not decide alone.

    Shape:
        importance: (width,), and so the result.
    """
    order = importance.sort().values
    below = torch.searchsorted(order, importance, right=False)
    up_to = torch.searchsorted(order, importance, right=True)
    # 1 - 2 rank: from 1 for the least important unit to -1 for the most, and 0 for a unit on its own.
    contrast = (len(importance) - below - up_to) / max(len(importance) - 1, 1)
    return p + spread * min(p, 1 - p) * contrast


Importance = Literal["activity", "gradient", "redundancy"]


def activity(x: Tensor) -> Tensor:
    """Return how large each unit is, ``mean |x_i|``, over all but the last dimension.

    Shape:
        x: (..., width); the result is (width,), in float32.
    """
    return x.abs().flatten(0, -2).mean(dim=0, dtype=torch.float32)


def distinctness(x: Tensor) -> Tensor:
    """Return how little each unit repeats the others, ``1 - mean_j |corr(x_i, x_j)|`` over ``j != i``.

    A unit that never moves says nothing, and has 0. One row tells nothing, and gives NaN.

    Shape:
        x: (..., width); the result is (width,), in float32.
    """
    rows = x.flatten(0, -2).float()
    if len(rows) < 2:
        return rows.new_full((x.shape[-1],), math.nan)
    centred = rows - rows.mean(dim=0)
    length = centred.norm(dim=0)
    unit = centred / length.clamp_min(torch.finfo(torch.float32).tiny)
    # The mean of equal numbers is off by rounding, which is no movement.
    moves = (length > 1e-6 * rows.norm(dim=0)).float()
    unit = unit * moves
    others = (unit.T @ unit).abs().sum(dim=0) - moves
    return moves * (1 - others / max(x.shape[-1] - 1, 1))


class ImportanceDropout(RateLayer):
    """Drop units at rates that fall with their measured importance; identity in evaluation.

    Formula, with ``rank_i`` in [0, 1] the place of unit ``i`` by the running mean of its importance::

        activity    |x_i|                           the size of what removing the unit removes
        gradient    |y_i dL/dy_i|                   what removing it does to the loss, to first order
        redundancy  1 - mean_j |corr(x_i, x_j)|     what no other unit says

        p_i = p + spread * min(p, 1 - p) * (1 - 2 rank_i)
        y_i = x_i * m_i / (1 - p_i),  m_i ~ Bernoulli(1 - p_i)

    The mean of the rates over units is ``p``, and each unit keeps its expectation. With ``p = 0.1`` and
    ``spread = 0.8`` the rates run from 0.02 for the most important unit to 0.18 for the least.

    Activity costs next to nothing. Gradients are read in the backward pass, and the layer's output is kept
    until then. Redundancy takes a product of width x width in each forward.

    The rates are renewed by ``set_rate`` only, which a handle's ``set_progress`` calls once per step, and in
    no forward: so an activation checkpoint recomputes with the rates of its first run, and a module
    called several times in one step drops alike each time. Without such calls every rate stays ``p``. The
    importances are saved with the model, since a resumed run must go on with the same rates.

    Args:
        width: number of units, the last dimension of the input.
        p: mean probability of dropping.
        spread: how far the rates lie apart: 0 for the same everywhere, towards 1 for twice ``p`` at the least
            important unit and 0 at the most (while p is at most one half).
        momentum: share of the running mean that one forward keeps.
        by: what makes a unit important: ``activity``, ``gradient`` or ``redundancy`` (the less, the more).

    Shape:
        (..., width); the result has the input's shape and dtype.

    Raises:
        InputError: when p lies outside [0, 1], spread or momentum outside [0, 1), width is below 1 or ``by``
            is none of the three.

    Paper: none gives these rates; the nearest is Gomez et al. 2019, "Learning sparse networks using targeted
    dropout", which drops among the units of least magnitude. Importance by ``|y dL/dy|`` is that of Molchanov
    et al. 2017, "Pruning convolutional neural networks for resource efficient inference".
    """

    silent_in_evaluation = True
    importance: Tensor
    unit_rates: Tensor

    def __init__(
        self,
        width: int,
        p: float = 0.5,
        *,
        spread: float = 0.8,
        momentum: float = 0.99,
        by: Importance = "activity",
    ) -> None:
        super().__init__(p)
        if width < 1:
            raise InputError(f"width is {width}; write the number of units, at least 1.")
        for name, value in (("spread", spread), ("momentum", momentum)):
            if not 0 <= value < 1:
                raise InputError(
                    f"{name} is {value}, but it lies between 0 and below 1; write 0.8 for example."
                )
        check_choice(by, get_args(Importance), "by")
        self.width, self.spread, self.momentum, self.by = width, float(spread), float(momentum), by
        self.register_buffer("importance", torch.zeros(width))
        self.register_buffer("unit_rates", torch.full((width,), self.p), persistent=False)

    def set_rate(self, p: float) -> None:
        """Set the mean probability of dropping, and renew the units' rates from what was measured."""
        super().set_rate(p)
        self.unit_rates.copy_(rates_by_importance(self.importance, self.p, self.spread))

    @torch.no_grad()
    def measure(self, seen: Tensor) -> None:
        """Move the running importances towards those of one batch.

        Shape:
            seen: (width,).
        """
        # One overflow, or an empty batch, must not stay in the mean for ever.
        seen = torch.where(seen.isfinite(), seen, self.importance)
        self.importance.lerp_(seen, 1 - self.momentum)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        y = functional.dropout(x, self.unit_rates)
        if self.by == "gradient":
            self.measure_in_backward(y)
        elif torch.compiler.is_compiling() or not inside_backward():
            of_batch = activity if self.by == "activity" else distinctness
            self.measure(of_batch(x.detach()))
        return y

    def measure_in_backward(self, y: Tensor) -> None:
        """Measure ``|y dL/dy|`` when the gradient comes.

        Also for what a checkpoint recomputes: only one of the two graphs is ever gone through.
        """
        if y.requires_grad:
            kept = y.detach()
            y.register_hook(lambda gradient: self.measure(activity(kept * gradient)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ImportanceDropout":
        was_meta = self.importance.is_meta
        super()._apply(fn, recurse)
        if was_meta:
            self.importance.zero_()
            self.unit_rates.fill_(self.p)
        # In half precision a running mean stands still, and the mean of the rates is no longer p.
        self.importance, self.unit_rates = self.importance.float(), self.unit_rates.float()
        return self

    def extra_repr(self) -> str:
        return f"width={self.width}, p={self.p}, spread={self.spread}, by={self.by!r}"
