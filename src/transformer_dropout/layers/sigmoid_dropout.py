"""LearnedDropout whose mask is a steep sigmoid and not drawn: the published code's SIGMOID."""

from torch import Tensor

from ..errors import InputError
from .learned_dropout import LearnedDropout, PenaltyName


def sigmoid_mask(keep_probability: Tensor, slope: float) -> Tensor:
    """Return ``sigmoid(slope * (M - 0.5))``, a soft threshold at one half."""
    return (slope * (keep_probability - 0.5)).sigmoid()


class LearnedSigmoidDropout(LearnedDropout):
    """``LearnedDropout`` with a soft threshold in place of the draw, the same in training and in evaluation.

    Formula: ``y = X * sigmoid(slope * (M - 0.5))`` with the M of ``LearnedDropout``. The gradient is that of
    the formula: with the published slope it is nearly 0 wherever M is not close to one half.

    Args:
        slope: how steep the sigmoid is.

    The other arguments, the shape and the errors are those of ``LearnedDropout``.

    Raises:
        InputError: when slope is not above 0.

    Paper: Yan 2024, "Learned Dropout"; in its code ``mask_rounding_type: SIGMOID`` and ``sigmoid_scale``.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        slope: float = 60.0,
        shift: float = 0.0,
        causal: bool = True,
        bias: bool = False,
        penalty: PenaltyName | None = "squared",
        detach: bool = False,
    ) -> None:
        if not slope > 0:
            raise InputError(f"slope is {slope}; write a number above 0 such as 60.")
        super().__init__(width, heads, shift=shift, causal=causal, bias=bias, penalty=penalty, detach=detach)
        self.slope = float(slope)

    def mask(self, keep_probability: Tensor) -> Tensor:
        return sigmoid_mask(keep_probability, self.slope)

    def extra_repr(self) -> str:
        return f"width={self.width}, heads={self.heads}, causal={self.causal}, slope={self.slope}"
