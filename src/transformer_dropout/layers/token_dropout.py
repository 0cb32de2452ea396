"""Token dropout: whole tokens of an embedding left out."""

from torch import Tensor

from .. import functional
from ..errors import InputError
from ._base import RateLayer


def token_dropout(x: Tensor, p: float | Tensor) -> Tensor:
    """Zero all channels of each token with probability ``p``; scale the others by ``1 / (1 - p)``."""
    return functional.group_dropout(x, p, (*x.shape[:-1], 1))


class TokenDropout(RateLayer):
    """Zero whole tokens in training; identity in evaluation.

    Formula: ``y_t = x_t * m_t / (1 - p)``, one ``m_t ~ Bernoulli(1 - p)`` per token.

    Args:
        p: probability of dropping a token.

    Shape:
        (batch, tokens, width); the result has the input's shape and dtype.

    Raises:
        InputError: when p lies outside [0, 1], or for a tensor that is not (batch, tokens, width).

    Paper: Iyyer et al. 2015, "Deep unordered composition rivals syntactic methods for text
    classification" (word dropout); scaled as in Merity et al. 2018, "Regularizing and optimizing LSTM
    language models", which drops all occurrences of a word at once.
    """

    acts_on = "tokens"
    silent_in_evaluation = True

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 3:
            raise InputError(
                f"TokenDropout needs a tensor (batch, tokens, width), not one of {x.dim()} dimensions; use "
                "it at embedding."
            )
        return token_dropout(x, self.current_rate()) if self.training else x
