"""Gaussian dropout: multiplicative noise with the mean and the variance of dropout."""

import torch
from torch import Tensor

from .. import functional
from ._base import RateLayer


def gaussian_dropout(x: Tensor, p: float | Tensor) -> Tensor:
    """Multiply each element by its own draw from ``N(1, p / (1 - p))``.

    The factor has the mean and the variance of dropout's ``m / (1 - p)``. At ``p = 1`` that variance is
    infinite and nothing of the signal is left, so the result is zeros, as with dropout.
    """
    deviation = (p * functional.inverse_keep(p)) ** 0.5
    noise = (1 + deviation * torch.randn_like(x, dtype=torch.float32)) * (p < 1)
    return x * noise.to(x.dtype)


class GaussianDropout(RateLayer):
    """Multiply each element by Gaussian noise around 1 in training; identity in evaluation.

    Formula: ``y = x * e``, ``e ~ N(1, p / (1 - p))``; ``p = 1`` gives zeros.

    Args:
        p: the probability of dropping of the ``Dropout`` with the same mean and variance.

    Shape:
        any; the result has the input's shape and dtype.

    Raises:
        InputError: when p lies outside [0, 1].

    Paper: Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting",
    section 10.
    """

    silent_in_evaluation = True

    def forward(self, x: Tensor) -> Tensor:
        return gaussian_dropout(x, self.current_rate()) if self.training else x
