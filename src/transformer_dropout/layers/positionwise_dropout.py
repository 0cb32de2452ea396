"""LearnedDropout whose gate reads the token alone, without attention."""

from torch import Tensor

from .. import functional
from .learned_dropout import EvalMask, LearnedDropout, PenaltyName, drawn_linear
from .low_rank_dropout import check_rank


class LearnedPositionwiseDropout(LearnedDropout):
    """``LearnedDropout`` whose mask is computed at each position from that position's channels alone.

    Formula: ``M = 0.5 cos(X W + shift) + 0.5``, with ``W = D U`` of rank ``rank`` where one is given. What
    becomes of M is as in ``LearnedDropout``.

    It costs ``width^2`` or ``2 width * rank`` multiplications per token, and nothing has to be remembered in
    cached decoding. At ``attention_output`` the channels are what the block's own attention has mixed, so
    that there the gate shares queries, keys and values with it. Padding counts in the penalty.

    Args:
        rank: inner width of W; None for a full matrix.

    The other arguments, the shape and the errors are those of ``LearnedDropout``.

    Raises:
        InputError: for a rank below 1.

    Paper: Yan 2024, "Learned Dropout", for the mask; position-wise as the feed-forward layer of Vaswani et
    al. 2017, "Attention is all you need".
    """

    looks_at_tokens = False

    def __init__(
        self,
        width: int,
        rank: int | None = None,
        *,
        shift: float = 0.0,
        bias: bool = False,
        eval_mask: EvalMask = "threshold",
        penalty: PenaltyName | None = "squared",
        detach: bool = False,
    ) -> None:
        self.rank = None if rank is None else check_rank(rank, width, 1)
        super().__init__(
            width, 1, shift=shift, bias=bias, eval_mask=eval_mask, penalty=penalty, detach=detach
        )

    def make_gate(self, bias: bool) -> None:
        self.down = None
        if self.rank is not None:
            self.down = drawn_linear(self.width, self.rank, bias)
        inner = self.width if self.rank is None else self.rank
        # Behind `down`, as large as it leaves the gate where it would start at full rank.
        self.up = drawn_linear(inner, self.width, bias, std=0.02 if self.down is None else inner**-0.5)

    def gate(
        self,
        mask_input: Tensor,
        padding_mask: Tensor | None = None,
        past: functional.KeysAndValues | None = None,
    ) -> Tensor:
        return self.up(mask_input if self.down is None else self.down(mask_input))

    def extra_repr(self) -> str:
        return f"width={self.width}, rank={self.rank}, eval_mask={self.eval_mask!r}"
