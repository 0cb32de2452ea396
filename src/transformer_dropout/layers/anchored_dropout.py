"""LearnedDropout that starts as plain dropout and is pulled back to it."""

import math

import torch
from torch import Tensor

from .. import functional
from ..errors import InputError
from .learned_dropout import EvalMask, LearnedDropout


def bernoulli_divergence(keep_probability: Tensor, p: float) -> Tensor:
    """Return the mean of ``KL(Bernoulli(M) || Bernoulli(1 - p))`` in nats.

    Formula: ``mean(M log(M / (1 - p)) + (1 - M) log((1 - M) / p))``, 0 where ``M = 1 - p``.
    """
    probability = keep_probability.to(torch.promote_types(keep_probability.dtype, torch.float32))
    margin = torch.finfo(probability.dtype).eps
    kept = probability.clamp(margin, 1 - margin)
    return (kept * (kept / (1 - p)).log() + (1 - kept) * ((1 - kept) / p).log()).mean()


def corrected_mask(keep_probability: Tensor, clip: float) -> Tensor:
    """Draw ``m = 1[u < M]``, whose gradient to ``M`` is ``g / (2 P(m))``, at most ``clip * g``.

    ``P(m)`` is the probability of the value drawn. The mean over both draws is then the trapezoid rule for
    ``f(1) - f(0)``, of second order in the mask, where straight through it is of first.

    Paper: Liu et al. 2023, "Bridging discrete and backpropagation: straight-through and beyond" (ReinMax,
    which is Heun's method), for two values.
    """
    hard = functional.sampled_mask(keep_probability.detach())
    drawn = torch.where(hard > 0, keep_probability, 1 - keep_probability).detach()
    return functional.straight_through(hard, (0.5 / drawn).clamp_max(clip) * keep_probability)


class AnchoredDropout(LearnedDropout):
    """A learned mask that starts as ``Dropout(p)`` and pays for leaving it.

    Formula, with the M of ``LearnedDropout``, its shift at ``arccos(1 - 2 p)`` and its values at 0, so that
    ``M = 1 - p`` at first::

        training:    y = X * m / (1 - p),  m = 1[u < M],  the gradient to M being g / (2 P(m)), clipped
        evaluation:  y = X * M / (1 - p)          (or thresholded, or sampled)
        penalty = mean KL(Bernoulli(M) || Bernoulli(1 - p))

    The weight of a rule multiplies the penalty; the larger it is, the closer this stays to dropout at p. The
    gate's weights are meant to decay not at all and to learn at a rate of their own: `weight_decay_groups`
    gives them a group that says so (``optimizer_options``).

    Args:
        anchor_p: p, the rate at the start, strictly between 0 and 1.
        lr_scale: learning rate of the gate, as a multiple of the others'.
        clip: the largest factor of the gradient, which ``1 / (2 P(m))`` exceeds at improbable draws.
        eval_mask: "mean" for ``X * M / (1 - p)``, "threshold", or "sample" to keep sampling.

    Attributes:
        at_anchor: while true, a training forward is plain ``Dropout(p)`` and leaves no penalty.

    The other arguments, the shape and the errors are those of ``LearnedDropout``.

    Raises:
        InputError: for an anchor_p not strictly between 0 and 1, or a clip or lr_scale that is not above 0.

    Papers: Yan 2024, "Learned Dropout", for the mask; Liu et al. 2023, see `corrected_mask`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        anchor_p: float = 0.1,
        causal: bool = True,
        eval_mask: EvalMask = "mean",
        clip: float = 10.0,
        lr_scale: float = 1.0,
        detach: bool = False,
    ) -> None:
        if not 0 < anchor_p < 1:
            raise InputError(
                f"anchor_p is {anchor_p}, but the rate that the mask starts from and is pulled to lies "
                "strictly between 0 and 1; write for example anchor_p=0.1."
            )
        for name, value in (("clip", clip), ("lr_scale", lr_scale)):
            if not value > 0:
                raise InputError(f"{name} is {value}; write a number above 0.")
        shift = math.acos(1 - 2 * anchor_p)
        super().__init__(
            width, heads, shift=shift, causal=causal, eval_mask=eval_mask, penalty=None, detach=detach
        )
        self.anchor_p, self.clip, self.at_anchor = float(anchor_p), float(clip), False
        self.has_penalty = True
        self.optimizer_options = {"weight_decay": 0.0, "lr_scale": float(lr_scale)}
        with torch.no_grad():
            self.qkv.weight.chunk(3)[2].zero_()

    def penalty_of(self, keep_probability: Tensor) -> Tensor:
        return bernoulli_divergence(keep_probability, self.anchor_p)

    def forward(
        self,
        x: Tensor,
        padding_mask: Tensor | None = None,
        past: functional.KeysAndValues | None = None,
    ) -> Tensor:
        if self.at_anchor and self.training:
            return functional.dropout(x, self.anchor_p)
        return super().forward(x, padding_mask, past)

    def step_by_step(
        self, x: Tensor, keep_probability: Tensor, padding_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        y, penalty = super().step_by_step(x, keep_probability, padding_mask)
        return y / (1 - self.anchor_p), penalty

    def mask(self, keep_probability: Tensor) -> Tensor:
        if self.training:
            return corrected_mask(keep_probability, self.clip)
        return super().mask(keep_probability)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, anchor_p={self.anchor_p}"
