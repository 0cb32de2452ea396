"""LearnedDropout whose gate is one head of low rank, which costs a part of the full attention."""

from torch import Tensor

from .. import functional
from ..errors import InputError
from .learned_dropout import EvalMask, LearnedDropout, PenaltyName, drawn_linear


def check_rank(rank: int | None, width: int, share: int) -> int:
    """Return the rank, by default a share of the width.

    Raises:
        InputError: for a rank below 1.
    """
    if rank is None:
        return max(width // share, 1)
    if rank < 1:
        raise InputError(f"rank is {rank}; write the inner width of the gate, 1 or more.")
    return rank


class LearnedLowRankDropout(LearnedDropout):
    """``LearnedDropout`` whose gate is one attention head over a projection of low rank.

    Formula, with ``q, k, v = X W_q, X W_k, X W_v`` of ``rank`` channels each::

        M = 0.5 cos(softmax(q k^T / sqrt(rank)) v U + shift) + 0.5

    The gate's products cost ``4 width * rank`` multiplications per token, those of ``LearnedDropout``
    ``3 width^2``: with the default rank a sixth.

    Args:
        rank: channels of q, k and v; None for an eighth of the width.

    The other arguments, the shape and the errors are those of ``LearnedDropout``.

    Raises:
        InputError: for a rank below 1.

    Paper: Yan 2024, "Learned Dropout", for the mask.
    """

    def __init__(
        self,
        width: int,
        rank: int | None = None,
        *,
        shift: float = 0.0,
        causal: bool = True,
        bias: bool = False,
        eval_mask: EvalMask = "threshold",
        penalty: PenaltyName | None = "squared",
        detach: bool = False,
    ) -> None:
        self.rank = check_rank(rank, width, 8)
        super().__init__(
            width,
            1,
            shift=shift,
            causal=causal,
            bias=bias,
            eval_mask=eval_mask,
            penalty=penalty,
            detach=detach,
        )

    def make_gate(self, bias: bool) -> None:
        self.qkv = drawn_linear(self.width, 3 * self.rank, bias)
        # As large as it leaves the gate where it would start at full rank.
        self.up = drawn_linear(self.rank, self.width, bias, std=self.rank**-0.5)

    def gate(
        self,
        mask_input: Tensor,
        padding_mask: Tensor | None = None,
        past: functional.KeysAndValues | None = None,
    ) -> Tensor:
        return self.up(super().gate(mask_input, padding_mask, past))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}"
