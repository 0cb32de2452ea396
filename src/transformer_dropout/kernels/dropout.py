"""Dropout whose mask is a function of a key and an element's index: nothing is kept for the backward."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._native import dense, is_transformed, takes_native
from ._operations import operation
from .random import CHUNK, draw_key, random_bits


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each element with probability ``p`` and scale the rest by ``1 / (1 - p)``.

    Formula: ``y_i = x_i 1[bits_i >= p 2^32 - 2^31] / (1 - p)``, with the ``random_bits`` of one drawn key as
    signed integers. The backward draws the same bits again.

    Args:
        x: an ordinary tensor in the memory of a processor; everything else takes PyTorch's own dropout.
        p: probability of dropping; 1 gives zeros.

    Shape:
        any; the result has the input's shape and dtype.

    Paper: Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting".
    """
    if p == 0:
        return x
    if is_transformed() or not dense(x):
        return F.dropout(x, p)
    return CounterDropout.apply(x, p, None)


def mask_numbers(p: float) -> tuple[int, float]:
    """Return from which int32 on random bits keep an element, and the scale of what is kept.

    At p = 1 one element in 2^32 is kept and scaled by 0.
    """
    return min(round(p * 2**32), 2**32 - 1) - 2**31, 1 / (1 - p) if p < 1 else 0.0


@operation("(Tensor x, float p) -> (Tensor, Tensor)", random=True)
def drawn_dropout(x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Return ``keyed_dropout`` under a fresh key, and the key."""
    key = draw_key()
    return kept(x, p, key), key


@operation("(Tensor x, float p, Tensor key) -> Tensor")
def keyed_dropout(x: Tensor, p: float, key: Tensor) -> Tensor:
    """Return what of a tensor is kept under a key, scaled."""
    return kept(x, p, key)


def kept(x: Tensor, p: float, key: Tensor) -> Tensor:
    """Return what of a tensor is kept under a key, scaled, in a native loop or without."""
    x = x.contiguous()
    if takes_native(x):
        from .native import dropout as native

        return native.masked(x, key, *mask_numbers(p))
    return masked(x, key, *mask_numbers(p))


class CounterDropout(torch.autograd.Function):
    """``dropout`` under a key; its gradient is the same function of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, key: Tensor | None) -> Tensor:
        y, key = drawn_dropout(x, p) if key is None else (keyed_dropout(x, p, key), key)
        ctx.save_for_backward(key)
        ctx.p = p
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        (key,) = ctx.saved_tensors
        return CounterDropout.apply(gradient, ctx.p, key), None, None


def masked(x: Tensor, key: Tensor, threshold: int, scale: float) -> Tensor:
    """Return what of a contiguous tensor is kept, scaled, part by part so that each stays in the cache."""
    y = torch.empty_like(x)
    parts = zip(x.view(-1).split(CHUNK), y.view(-1).split(CHUNK), strict=True)
    for number, (source, target) in enumerate(parts):
        bits = random_bits(key, source.numel(), number * CHUNK)
        # Written as numbers at once: a mask of truth values takes longer to apply.
        torch.ge(bits, threshold, out=target).mul_(source).mul_(scale)
    return y
