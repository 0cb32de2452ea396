"""Products on a GPU with zeros around them: its matrix units take rows and columns in multiples of 8.

A vocabulary of 50,257 or a width of 156 would run on slower code. Parameters keep their own sizes.
"""

import torch.nn.functional as F
from torch import Tensor

WIDTH_MULTIPLE, VOCABULARY_MULTIPLE = 8, 64


def aligned_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x weight^T + bias``, both sizes of the weight filled up to multiples of 8.

    Shape:
        x: (..., inputs); weight: (outputs, inputs); bias: (outputs,); result: (..., outputs).
    """
    outputs, inputs = weight.shape
    rows, columns = -outputs % WIDTH_MULTIPLE, -inputs % WIDTH_MULTIPLE
    if not (rows or columns):
        return F.linear(x, weight, bias)
    bias = None if bias is None else F.pad(bias, (0, rows))
    return F.linear(F.pad(x, (0, columns)), F.pad(weight, (0, columns, 0, rows)), bias)[..., :outputs]


def aligned_vocabulary(weight: Tensor) -> Tensor:
    """Return an output layer's weight with rows of zeros up to a multiple of 64.

    Shape:
        weight: (classes, width).
    """
    return F.pad(weight, (0, 0, 0, -len(weight) % VOCABULARY_MULTIPLE))
