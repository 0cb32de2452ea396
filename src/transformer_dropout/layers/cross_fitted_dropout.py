"""AnchoredDropout with two gates, each meant to learn from the examples that the other one masks."""

import torch
from torch import Tensor, nn

from ..functional import cosine_keep_probability
from .anchored_dropout import AnchoredDropout
from .learned_dropout import EvalMask, drawn_linear


class CrossFittedDropout(AnchoredDropout):
    """``AnchoredDropout`` whose mask comes from one of two gates in training, and from both in evaluation.

    Formula, with ``M_0`` and ``M_1`` the M of ``AnchoredDropout`` by two gates::

        training:    sequence b of the batch has the mask of ``M_(b mod 2)``
        evaluation:  y = X * (M_0 + M_1) / 2 / (1 - p)          (or thresholded, or sampled)

    Sequences of a batch alternate between two halves of the training examples, so that each gate masks one.
    `CrossFittedGates` turns the halves round for the gates' gradient, so that each learns from the half on
    which the weights have never met its masks.

    Attributes:
        turned: while true, each half is masked by the other one's gate.

    The arguments, the shape and the errors are those of ``AnchoredDropout``; both gates are computed for all.

    Papers: Yan 2024, "Learned Dropout", for the mask; Chernozhukov et al. 2018, "Double/debiased machine
    learning for treatment and structural parameters", for the two halves.
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
        super().__init__(
            width,
            heads,
            anchor_p=anchor_p,
            causal=causal,
            eval_mask=eval_mask,
            clip=clip,
            lr_scale=lr_scale,
            detach=detach,
        )
        # One attention serves both: the heads of the second follow those of the first.
        self.heads, self.turned = 2 * heads, False
        self.shift = nn.Parameter(self.shift.detach().repeat(2))

    def make_gate(self, bias: bool) -> None:
        self.qkv = drawn_linear(self.width, 6 * self.width, bias)

    def keep_probability(self, gate: Tensor) -> Tensor:
        first, second = cosine_keep_probability(gate, self.shift).chunk(2, dim=-1)
        if not self.training:
            return (first + second) / 2
        even = torch.arange(len(gate), device=gate.device)[:, None, None] % 2 == int(self.turned)
        return torch.where(even, first, second)
