"""Concrete dropout: the rate itself is learned."""

import math

import torch
from torch import Tensor, nn

from ..errors import InputError
from ._base import DropoutLayer


def concrete_mask(x: Tensor, logit: Tensor, temperature: float) -> Tensor:
    """Draw a soft mask for ``x``, near 0 or 1 at a low temperature, with a gradient to ``logit``.

    Formula: ``m = sigmoid(-(logit + log u - log(1 - u)) / temperature)``, ``u ~ U(0, 1)``.
    """
    noise = torch.logit(torch.rand_like(x, dtype=torch.float32), eps=1e-7)
    return torch.sigmoid(-(logit + noise) / temperature)


def rate_entropy(logit: Tensor) -> Tensor:
    """Return ``H(p) = -p log p - (1 - p) log(1 - p)`` in nats, for ``p = sigmoid(logit)``."""
    return nn.functional.softplus(logit) - torch.sigmoid(logit) * logit


class ConcreteDropout(DropoutLayer):
    """Drop with a rate that is a parameter, trained through a soft mask; identity in evaluation.

    Formula, with ``p = sigmoid(logit)``::

        y = x * m / (1 - p),  m = sigmoid(-(logit + log u - log(1 - u)) / temperature),  u ~ U(0, 1)
        penalty = log 2 - H(p)

    The task pulls the rate towards 0, the penalty towards one half. The penalty is the paper's entropy
    term plus a constant that makes it 0 at ``p = 0.5`` and positive elsewhere. The paper multiplies that term
    by (width / number of training examples), which is the weight to begin with. Its other term,
    ``(1 - p) * ||W||^2`` of the linear layer that follows, needs that layer, which a layer acting on one
    tensor does not know; weight decay stands in for it.

    Args:
        initial_p: the rate at the start of training, strictly between 0 and 1.
        temperature: how soft the mask is; towards 0 it becomes dropout's, and its gradient noisier.

    Shape:
        any; the result has the input's shape and dtype.

    Raises:
        InputError: when initial_p is not strictly between 0 and 1, or temperature is not above 0.

    Paper: Gal et al. 2017, "Concrete dropout".
    """

    has_penalty = True
    silent_in_evaluation = True

    def __init__(self, *, initial_p: float = 0.1, temperature: float = 0.1) -> None:
        super().__init__()
        if not 0 < initial_p < 1:
            raise InputError(
                f"initial_p is {initial_p}, but a rate that is learned starts strictly between 0 and 1; "
                "write for example initial_p=0.1."
            )
        if not temperature > 0:
            raise InputError(f"temperature is {temperature}; write a number above 0 such as 0.1.")
        self.temperature = float(temperature)
        # One dimension, since fully_shard takes no parameter without any.
        self.logit = nn.Parameter(torch.tensor([math.log(initial_p / (1 - initial_p))]))

    @property
    def p(self) -> float:
        """The probability of dropping as learned so far."""
        return torch.sigmoid(self.logit.detach().float()).item()

    def probability(self) -> float:
        return self.p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        logit = self.logit.float()[0]
        self.store_penalty(math.log(2) - rate_entropy(logit))
        mask = concrete_mask(x, logit, self.temperature)
        return x * (mask * (1 + logit.exp())).to(x.dtype)  # 1 / (1 - p) is 1 + exp(logit)

    def extra_repr(self) -> str:
        return f"p={self.p:.4g}, temperature={self.temperature}"
