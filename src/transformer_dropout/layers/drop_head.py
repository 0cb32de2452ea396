"""DropHead: whole attention heads left out."""

import torch
from torch import Tensor

from ..errors import InputError
from ._base import RateLayer


def drop_head(x: Tensor, p: float | Tensor) -> Tensor:
    """Zero each head of each sample with probability ``p``; scale the others by ``heads / kept heads``.

    Where no head is kept the result is zeros.
    """
    mask = torch.rand(*x.shape[:2], 1, 1, dtype=torch.float32, device=x.device) < 1 - p
    kept = mask.sum(dim=1, keepdim=True)
    return x * (mask * (x.shape[1] / kept.clamp_min(1))).to(x.dtype)


class DropHead(RateLayer):
    """Zero whole attention heads and normalise the others in training; identity in evaluation.

    Formula: ``y_h = x_h * m_h * H / sum(m)``, one ``m_h ~ Bernoulli(1 - p)`` per sample and head of ``H``.
    The expectation is ``(1 - p^H) x``: exact but for the draws that keep no head, which give zeros.

    Args:
        p: probability of dropping a head.

    Shape:
        (batch, heads, tokens, tokens) for attention weights, (batch, heads, tokens, head width) for what
        the heads return; the result has the input's shape and dtype.

    Raises:
        InputError: when p lies outside [0, 1], or for a tensor without a dimension of heads.

    Paper: Zhou et al. 2020, "Scheduled DropHead: a regularization method for transformer models".
    """

    acts_on = "heads"
    silent_in_evaluation = True

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise InputError(
                f"DropHead needs a tensor (batch, heads, tokens, ...), not one of {x.dim()} dimensions; use "
                "it at attention_weights."
            )
        return drop_head(x, self.current_rate()) if self.training else x
