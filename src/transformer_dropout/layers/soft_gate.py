"""A gate of LearnedDropout's size that multiplies by the probability itself: nothing is drawn."""

from torch import Tensor

from .learned_dropout import LearnedDropout, PenaltyName


class LearnedSoftGate(LearnedDropout):
    """Multiply by M where ``LearnedDropout`` draws a mask from it, in training and in evaluation.

    Formula: ``y = X * M`` with the M of ``LearnedDropout``. A control: it has the capacity of the learned
    mask and none of its noise, and says how much of an effect is due to either.

    The arguments, the shape and the errors are those of ``LearnedDropout``, but for ``eval_mask``.

    Paper: Yan 2024, "Learned Dropout", for M; Dauphin et al. 2017, "Language modeling with gated
    convolutional networks", for gating.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        shift: float = 0.0,
        causal: bool = True,
        bias: bool = False,
        penalty: PenaltyName | None = "squared",
        detach: bool = False,
    ) -> None:
        super().__init__(
            width,
            heads,
            shift=shift,
            causal=causal,
            bias=bias,
            eval_mask="mean",
            penalty=penalty,
            detach=detach,
        )

    def mask(self, keep_probability: Tensor) -> Tensor:
        return keep_probability
