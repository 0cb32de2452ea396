"""Standard dropout."""

from torch import Tensor

from .. import functional
from ._base import RateLayer


class Dropout(RateLayer):
    """Zero each element with probability ``p`` in training; identity in evaluation.

    Formula: ``y = x * m / (1 - p)``, ``m ~ Bernoulli(1 - p)``.

    Args:
        p: probability of dropping.

    Shape:
        any; the result has the input's shape and dtype.

    Raises:
        InputError: when p lies outside [0, 1].

    Paper: Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting".
    """

    is_plain_dropout = True
    silent_in_evaluation = True

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.current_rate()) if self.training else x
