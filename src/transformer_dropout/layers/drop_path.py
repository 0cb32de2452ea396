"""DropPath: stochastic depth, one decision per sample."""

from torch import Tensor

from .. import functional
from ._base import RateLayer


def drop_path(branch: Tensor, p: float | Tensor) -> Tensor:
    """Zero a branch for each sample with probability ``p``; scale the others by ``1 / (1 - p)``."""
    return functional.group_dropout(branch, p, (*branch.shape[:1], *[1] * (branch.dim() - 1)))


class DropPath(RateLayer):
    """Leave out a residual branch, sample by sample, in training; identity in evaluation.

    Formula: ``y = f(x) * m / (1 - p)``, one ``m ~ Bernoulli(1 - p)`` per sample, so that the block returns
    ``x + y``. The paper scales by the survival probability in evaluation; scaling in training, as timm
    does, has the same expectation and leaves evaluation alone.

    It acts on a branch: the output of an attention or an MLP is one already, and the branch of a whole
    block is what the block adds to its input.

    Args:
        p: probability that a sample goes without the branch.

    Shape:
        (batch, ...); the result has the input's shape and dtype.

    Raises:
        InputError: when p lies outside [0, 1].

    Paper: Huang et al. 2016, "Deep networks with stochastic depth".
    """

    tells_samples_apart = True
    silent_in_evaluation = True

    def forward(self, branch: Tensor) -> Tensor:
        return drop_path(branch, self.current_rate()) if self.training else branch
