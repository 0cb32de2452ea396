"""A joint projection split into the heads' queries, keys and values, and one gradient made of three."""

from typing import Any

import torch
from torch import Tensor

from ._native import is_unwrapped, is_watched


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values as views of a joint projection whose channels are q, then k, then v.

    The backward of plain views copies each gradient twice; this one copies once, or not at all where the
    attention has laid its three gradients side by side.

    Shape:
        qkv: (batch, tokens, 3 * heads * d); each result: (batch, heads, tokens, d).
    """
    if is_watched() or not is_unwrapped(qkv):
        return views(qkv, heads)
    return SplitHeads.apply(qkv, heads)


def views(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three views of a joint tensor."""
    batch, tokens, channels = qkv.shape
    query, key, value = qkv.view(batch, tokens, 3, heads, channels // (3 * heads)).permute(2, 0, 3, 1, 4)
    return query, key, value


class SplitHeads(torch.autograd.Function):
    """``views`` with a gradient that copies little."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        ctx.shape, ctx.heads = qkv.shape, heads
        return views(qkv, heads)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():
            # Gradients of gradients want a graph.
            return torch.stack(gradients).permute(1, 3, 0, 2, 4).reshape(ctx.shape), None
        found = side_by_side(gradients, ctx.shape)
        if found is None:
            found = gradients[0].new_empty(ctx.shape)
            for place, gradient in zip(views(found, ctx.heads), gradients, strict=True):
                place.copy_(gradient)
        return found, None


def side_by_side(gradients: tuple[Tensor, ...], shape: torch.Size) -> Tensor | None:
    """Return the joint tensor that three gradients are the ``views`` of; None where there is none."""
    first, (_, tokens, channels) = gradients[0], shape
    size = first.shape[-1]
    stride = (tokens * channels, size, channels, 1)
    starts = [first.storage_offset() + number * channels // 3 for number in range(3)]
    for gradient, start in zip(gradients, starts, strict=True):
        same = gradient.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or gradient.storage_offset() != start or gradient.stride() != stride:
            return None
    return first.as_strided(shape, (tokens * channels, channels, 1))
