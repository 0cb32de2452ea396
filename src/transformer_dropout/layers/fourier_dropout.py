"""LearnedDropout whose keep probability is a Fourier series in the gate."""

import torch
from torch import Tensor, nn

from ..errors import InputError
from .learned_dropout import EvalMask, LearnedDropout, PenaltyName


def fourier_keep_probability(gate: Tensor, shifts: Tensor, amplitudes: Tensor) -> Tensor:
    """Return ``M = 0.5 sum_k a_k cos(k gate + shift_k) + 0.5`` for k = 1, 2, and so on.

    With amplitudes that are not negative and add up to 1 it lies in [0, 1], and one term is the cosine of
    `LearnedDropout`. It is at least float32.

    Shape:
        gate: (..., width); shifts, amplitudes: (terms, width).
    """
    gate = gate.to(torch.promote_types(gate.dtype, torch.float32))
    series = amplitudes[0] * torch.cos(gate + shifts[0])
    for k in range(1, len(shifts)):
        series = series + amplitudes[k] * torch.cos((k + 1) * gate + shifts[k])
    return 0.5 * series + 0.5


class LearnedFourierDropout(LearnedDropout):
    """``LearnedDropout`` with a K-term Fourier series in place of the cosine.

    Formula, with ``u`` what attention mixes for a channel::

        M = 0.5 sum_{k=1..K} a_k cos(k u + shift_k) + 0.5,   a = softmax(amplitude)

    M lies in [0, 1] whatever the parameters are. Each channel learns K shifts and the logits of K amplitudes,
    which start equal. One term is ``LearnedDropout``, with the same parameters.

    Args:
        terms: K, how many harmonics.
        shift: initial value of every shift.

    The other arguments, the shape and the errors are those of ``LearnedDropout``.

    Raises:
        InputError: for fewer than one term.

    Paper: Yan 2024, "Learned Dropout", which names a Fourier series as an open question.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        terms: int = 2,
        *,
        shift: float = 0.0,
        causal: bool = True,
        eval_mask: EvalMask = "threshold",
        penalty: PenaltyName | None = "squared",
        detach: bool = False,
    ) -> None:
        super().__init__(
            width, heads, shift=shift, causal=causal, eval_mask=eval_mask, penalty=penalty, detach=detach
        )
        if terms < 1:
            raise InputError(f"terms is {terms}; write the number of terms of the series, 1 or more.")
        self.terms = terms
        # Of one dimension each, so that no optimizer takes them for matrices and decays them.
        self.shift = nn.Parameter(torch.full((terms * width,), float(shift)))
        self.amplitude = nn.Parameter(torch.zeros(terms * width)) if terms > 1 else None

    def keep_probability(self, gate: Tensor) -> Tensor:
        shifts = self.shift.view(self.terms, self.width)
        if self.amplitude is None:
            return fourier_keep_probability(gate, shifts, torch.ones_like(shifts))
        amplitudes = self.amplitude.view(self.terms, self.width).softmax(dim=0)
        return fourier_keep_probability(gate, shifts, amplitudes)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, terms={self.terms}"
