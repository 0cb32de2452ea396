"""Additive Gaussian noise."""

import math

import torch
from torch import Tensor

from ..errors import InputError
from ._base import DropoutLayer


def gaussian_noise(x: Tensor, std: float) -> Tensor:
    """Add a draw from ``N(0, std^2)`` to each element."""
    return x + (torch.randn_like(x, dtype=torch.float32) * std).to(x.dtype)


class GaussianNoise(DropoutLayer):
    """Add Gaussian noise in training; identity in evaluation.

    Formula: ``y = x + e``, ``e ~ N(0, std^2)``.

    Args:
        std: standard deviation of the noise, in the units of the input.

    Shape:
        any; the result has the input's shape and dtype.

    Raises:
        InputError: when std is negative or not finite.

    Paper: Bishop 1995, "Training with noise is equivalent to Tikhonov regularization".
    """

    silent_in_evaluation = True

    def __init__(self, std: float) -> None:
        super().__init__()
        if not (std >= 0 and math.isfinite(std)):
            raise InputError(
                f"std is {std}, but a standard deviation is 0 or more; write for example std=0.1."
            )
        self.std = float(std)

    def forward(self, x: Tensor) -> Tensor:
        return gaussian_noise(x, self.std) if self.training else x

    def extra_repr(self) -> str:
        return f"std={self.std}"
