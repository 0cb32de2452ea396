"""LayerDrop: a whole block left out for a whole batch."""

import torch
from torch import Tensor

from ._base import RateLayer


def layer_drop(branch: Tensor, p: float | Tensor) -> Tensor:
    """Zero the whole tensor with probability ``p``; nothing is rescaled."""
    return branch * (torch.rand((), dtype=torch.float32, device=branch.device) < 1 - p).to(branch.dtype)


class LayerDrop(RateLayer):
    """Leave out a whole block for the whole batch in training; identity in evaluation.

    Formula: ``y = f(x) * m``, one ``m ~ Bernoulli(1 - p)`` per forward, so that the block returns ``x + y``.
    Unlike ``DropPath`` it decides once for all samples and does not rescale: a block that runs always runs
    as it will in evaluation, and the expectation of its branch is ``(1 - p) f(x)``.

    It saves no time: a block that is left out is computed all the same, since skipping it would leave its
    parameters without a gradient, which DDP refuses, let FSDP's processes wait for each other, break a
    compiled graph, and leave penalties and caches inside the block unfilled.

    Args:
        p: probability that the block is left out; the paper uses 0.2 to prune up to half of them later.

    Shape:
        any; the result has the input's shape and dtype.

    Raises:
        InputError: when p lies outside [0, 1].

    Paper: Fan et al. 2020, "Reducing transformer depth on demand with structured dropout".
    """

    silent_in_evaluation = True

    def forward(self, branch: Tensor) -> Tensor:
        return layer_drop(branch, self.current_rate()) if self.training else branch
