"""LearnedDropout with a steep sigmoid as mask and a straight-through gradient: the code's SIGMOID_DETACH."""

from torch import Tensor

from .. import functional
from .sigmoid_dropout import LearnedSigmoidDropout, sigmoid_mask


class LearnedSigmoidStraightThrough(LearnedSigmoidDropout):
    """``LearnedSigmoidDropout`` whose gradient passes straight through to M.

    Formula: ``y = X * sigmoid(slope * (M - 0.5))``, with the gradient of ``y = X * M`` for the gate, so that
    it learns where the sigmoid is flat too.

    The arguments, the shape and the errors are those of ``LearnedSigmoidDropout``.

    Paper: Yan 2024, "Learned Dropout"; in its code ``mask_rounding_type: SIGMOID_DETACH``.
    """

    def mask(self, keep_probability: Tensor) -> Tensor:
        return functional.straight_through(
            sigmoid_mask(keep_probability.detach(), self.slope), keep_probability
        )
