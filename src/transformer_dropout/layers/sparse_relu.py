"""ReLU with an L1 penalty on what it lets through: sparsity without a mask."""

from torch import Tensor

from ._base import DropoutLayer


class SparseReLU(DropoutLayer):
    """Set negative hidden units to 0 and penalise the size of the others, in training and in evaluation.

    Formula: ``y = max(X, 0)``, ``penalty = mean(y)``, which is the L1 norm over the number of elements. After
    a GELU or SiLU, whose signs are those of their inputs, the units that stay are those that a ReLU would
    keep, at that function's values.

    Shape:
        any; the result has the input's shape and dtype.

    Papers: Glorot et al. 2011, "Deep sparse rectifier neural networks", for the rectifier and the penalty;
    Mirzadeh et al. 2024, "ReLU strikes back", for putting it into a transformer.
    """

    has_penalty = True

    def forward(self, x: Tensor) -> Tensor:
        y = x.relu()
        if self.training:
            self.store_penalty(y.float().mean())
        if self.observer is not None:
            kept = (x > 0).to(x.dtype)
            self.observer(kept, kept)
        return y
