"""DropKey: keys hidden before the softmax, instead of attention weights zeroed after it."""

import torch
from torch import Tensor

from ._base import RateLayer


def drop_key(scores: Tensor, p: float | Tensor) -> Tensor:
    """Hide each key from each query with probability ``p``, by lowering its score.

    A score is lowered to half the lowest finite number, not to minus infinity: a query that loses all its
    keys then attends evenly to those it may see, where minus infinity would give NaN. Keys hidden by a
    mask, at minus infinity or at the lowest finite number, stay below that and so stay hidden.
    """
    lowered = scores.clamp_max(torch.finfo(scores.dtype).min / 2)
    return torch.where(torch.rand_like(scores, dtype=torch.float32) < p, lowered, scores)


class DropKey(RateLayer):
    """Hide keys from queries before the softmax in training; identity in evaluation.

    Formula: ``weights = softmax(s + d)``, ``d = -inf`` with probability ``p``, else 0, drawn for each query
    and key. The softmax normalises over the keys that are left, so nothing is rescaled and the weights
    still sum to 1, which dropout on the weights does not keep. A query that loses all its keys attends
    evenly to those that a mask lets it see.

    It acts on scores, the masked products before the softmax; on weights it would mean nothing.

    Args:
        p: probability of hiding a key from a query.

    Shape:
        scores: (..., queries, keys), masked; the result has the input's shape and dtype.

    Raises:
        InputError: when p lies outside [0, 1].

    Paper: Li et al. 2023, "DropKey for vision transformer".
    """

    acts_on = "scores"
    silent_in_evaluation = True

    def forward(self, scores: Tensor) -> Tensor:
        return drop_key(scores, self.current_rate()) if self.training else scores
