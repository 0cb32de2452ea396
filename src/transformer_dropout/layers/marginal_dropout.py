"""A control for LearnedDropout: random masks at the rates its gate has, channel by channel."""

from collections.abc import Callable

import torch
from torch import Tensor

from .. import functional
from ..kernels.torch_internals import inside_backward
from .learned_dropout import EvalMask, LearnedDropout, PenaltyName, real_tokens

# Share of a channel's running rate that one forward keeps.
MOMENTUM = 0.99


class LearnedMarginalDropout(LearnedDropout):
    """Draw masks at the mean rates of ``LearnedDropout``'s gate, whatever the input is.

    Formula, with ``r_c`` the running mean over tokens of channel c of the M of ``LearnedDropout``::

        training:    y = X * 1[u < r],  u ~ U[0, 1), the gradient passing straight through to M
        evaluation:  y = X * 1[r >= 0.5]        (or X * r, or sampled)

    A control: the gate is computed, penalised and trained as ever, and the masks have its marginal rates, but
    they do not depend on the input. The rates are renewed by ``set_progress`` only, which a handle calls once
    a step, so that an activation checkpoint recomputes with those of its first run; they are saved.

    The arguments, the shape and the errors are those of ``LearnedDropout``.

    Paper: Yan 2024, "Learned Dropout", for M.
    """

    measured: Tensor
    rates: Tensor

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        shift: float = 0.0,
        causal: bool = True,
        bias: bool = False,
        eval_mask: EvalMask = "threshold",
        penalty: PenaltyName | None = "squared",
        detach: bool = False,
    ) -> None:
        super().__init__(
            width,
            heads,
            shift=shift,
            causal=causal,
            bias=bias,
            eval_mask=eval_mask,
            penalty=penalty,
            detach=detach,
        )
        start = functional.cosine_keep_probability(torch.zeros(width), self.shift.detach())
        self.register_buffer("measured", start)
        self.register_buffer("rates", start.clone())

    def set_progress(self, progress: float) -> None:
        """Renew the rates from what was measured."""
        self.rates.copy_(self.measured)

    @torch.no_grad()
    def measure(self, keep_probability: Tensor) -> None:
        """Move the running rates towards the mean of M over tokens."""
        seen = keep_probability.detach().flatten(0, -2).mean(dim=0, dtype=torch.float32)
        seen = torch.where(seen.isfinite(), seen, self.measured)
        self.measured.lerp_(seen, 1 - MOMENTUM)

    def step_by_step(
        self, x: Tensor, keep_probability: Tensor, padding_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if self.training and (torch.compiler.is_compiling() or not inside_backward()):
            self.measure(real_tokens(keep_probability, padding_mask))
        return super().step_by_step(x, keep_probability, padding_mask)

    def mask(self, keep_probability: Tensor) -> Tensor:
        rates = self.rates.to(keep_probability.dtype).expand_as(keep_probability)
        return functional.straight_through(super().mask(rates), keep_probability)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LearnedMarginalDropout":
        super()._apply(fn, recurse)
        # In half precision a running mean stands still.
        self.measured, self.rates = self.measured.float(), self.rates.float()
        return self
