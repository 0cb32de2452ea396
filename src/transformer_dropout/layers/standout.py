"""Standout: each unit's probability of being kept is computed from the input."""

import torch
from torch import Tensor, nn

from .. import functional
from ..errors import InputError
from ._base import DropoutLayer


def standout_keep_probability(x: Tensor, weight: Tensor, alpha: float, beta: float) -> Tensor:
    """Return ``sigmoid(alpha * W x + beta)``."""
    return torch.sigmoid(alpha * nn.functional.linear(x, weight) + beta)


class Standout(DropoutLayer):
    """Keep each unit with a probability computed from the input; scale by that probability in evaluation.

    Formula, with ``keep = sigmoid(alpha * W x + beta)``::

        training:    y = x * m,  m ~ Bernoulli(keep), the gradient passing straight through to keep
        evaluation:  y = x * keep

    Nothing is rescaled by 1 / keep. In the paper a layer's mask is computed from the layer's input and may
    share its weights; here both mask and output come from ``x``, and ``W`` is the layer's own, trained with
    the rest.

    Args:
        width: number of channels of the input.
        alpha: how strongly the input decides; 0 makes every probability ``sigmoid(beta)``.
        beta: the bias towards keeping; 0 starts near a half, 2.2 near 0.9.

    Shape:
        (..., width); the result has the input's shape and dtype.

    Raises:
        InputError: for a width below 1.

    Paper: Ba and Frey 2013, "Adaptive dropout for training deep neural networks".
    """

    def __init__(self, width: int, *, alpha: float = 1.0, beta: float = 0.0) -> None:
        super().__init__()
        if width < 1:
            raise InputError(f"width is {width}; write the number of channels of the input, at least 1.")
        self.width, self.alpha, self.beta = width, float(alpha), float(beta)
        self.gate = nn.Linear(width, width, bias=False)
        nn.init.normal_(self.gate.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        keep = standout_keep_probability(x, self.gate.weight, self.alpha, self.beta)
        mask = functional.sampled_mask(keep) if self.training else keep
        if self.observer is not None:
            self.observer(keep, mask)
        return x * mask

    def extra_repr(self) -> str:
        return f"width={self.width}, alpha={self.alpha}, beta={self.beta}"
