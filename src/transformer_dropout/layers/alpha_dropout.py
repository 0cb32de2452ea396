"""Alpha dropout: for self-normalising networks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import functional
from ._base import RateLayer

# The limit of SELU at minus infinity, -scale * alpha, to which dropped elements are set.
SATURATION = -1.7580993408473766


def alpha_dropout(x: Tensor, p: float | Tensor) -> Tensor:
    """Set each element to SELU's negative limit with probability ``p``, then restore mean 0 and variance 1.

    Args:
        x: any tensor of a floating dtype.
        p: probability of dropping; a float runs torch's own function, a 0-dim tensor the same formula.
    """
    if not isinstance(p, Tensor):
        return F.alpha_dropout(x, p, training=True)
    rate = p.float()
    # The variance after the drop is (1 - p)(1 + p s^2), of which `slope` is the inverse root.
    slope = (functional.inverse_keep(rate) / (1 + rate * SATURATION**2)).sqrt()
    mask = (torch.rand_like(x, dtype=torch.float32) < 1 - rate).float()
    shift = slope * SATURATION * (1 - mask - rate)
    return x * (slope * mask).to(x.dtype) + shift.to(x.dtype)


class AlphaDropout(RateLayer):
    """Saturate elements and restore mean and variance in training; identity in evaluation.

    Formula: ``y = a (x m + s (1 - m)) + b`` with ``m ~ Bernoulli(1 - p)``, ``s = -1.7581`` the limit of
    SELU, ``a = ((1 - p)(1 + p s^2))^(-1/2)``, ``b = -a p s``; ``p = 1`` gives zeros. An input of mean 0 and
    variance 1 keeps both. It belongs after SELU; elsewhere its expectation ``a (1 - p) x`` is not the input.

    Args:
        p: probability of dropping.

    Shape:
        any; the result has the input's shape and dtype.

    Raises:
        InputError: when p lies outside [0, 1].

    Paper: Klambauer et al. 2017, "Self-normalizing neural networks".
    """

    silent_in_evaluation = True

    def forward(self, x: Tensor) -> Tensor:
        return alpha_dropout(x, self.current_rate()) if self.training else x
