"""The dropout of `kernels.dropout` as a native loop."""

import numpy as np
import torch
from torch import Tensor

from ._compiled import compiled
from .mask import narrowed, widened
from .random import element_bits, key_words


@compiled
def keep(x, first, second, threshold, scale, y):
    """Write what is kept of a row of numbers."""
    for i in range(x.size):
        kept = np.int32(element_bits(np.uint32(i), first, second)) >= threshold
        # NaN stays NaN, as in PyTorch.
        y[i] = narrowed(widened(x[i]) * (scale if kept else np.float32(0)), y)


def masked(x: Tensor, key: Tensor, threshold: int, scale: float) -> Tensor:
    """Return what of a contiguous tensor is kept, scaled."""
    y = torch.empty_like(x)
    keep(as_row(x), *key_words(key), np.int32(threshold), np.float32(scale), as_row(y))
    return y


def as_row(tensor: Tensor) -> np.ndarray:
    """Return a tensor's memory as one row; bfloat16 as the int16 with the same bits."""
    tensor = tensor.detach().view(-1)
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
