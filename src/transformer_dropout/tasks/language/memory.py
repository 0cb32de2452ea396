"""The keys and values of one attention, in memory that is taken once."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Extent(Protocol):
    """Says how many tokens are remembered, and how many may be."""

    length: int
    capacity: int


class Memory:
    """What one attention remembers.

    Args:
        extent: shared with the other attentions of the model.

    Attributes:
        both: keys and values, of shape (2, batch, heads, capacity, width of a head); None before the first.
    """

    def __init__(self, extent: Extent) -> None:
        self.extent = extent
        self.both: Tensor | None = None

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Remember new keys and values; return all so far.

        Shape:
            key, value: (batch, heads, tokens, width of a head).
        """
        batch, heads, tokens, size = key.shape
        if self.both is None or self.both.shape[1:3] != (batch, heads):
            self.both = key.new_empty(2, batch, heads, self.extent.capacity, size)
        end = self.extent.length + tokens
        for half, new in zip(self.both, (key, value), strict=True):
            half[:, :, self.extent.length : end] = new
        return self.so_far(end)

    def so_far(self, end: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values of so many tokens."""
        assert self.both is not None
        keys, values = self.both[:, :, :, :end].unbind(0)
        return keys, values

    def mix(self, qkv: Tensor, seen: Tensor | None) -> Tensor:
        """Remember the key and value of one more token in each row; return what its query mixes of all.

        This is ``functional.self_attention`` for one token, in as few operations as there can be.

        Args:
            qkv: the token's query, key and value.
            seen: true at the tokens that it may look at, itself included; None for all.

        Shape:
            qkv: (batch, 3 * width); seen: (batch, 1, 1, tokens); result: (batch, width).
        """
        assert self.both is not None
        _, batch, heads, _, size = self.both.shape
        parts = qkv.view(batch, 3, heads, size)
        self.both[:, :, :, self.extent.length] = parts[:, 1:].transpose(0, 1)
        keys, values = self.so_far(self.extent.length + 1)
        mixed = F.scaled_dot_product_attention(parts[:, 0, :, None], keys, values, attn_mask=seen)
        return mixed.reshape(batch, heads * size)


def keys_and_values(memory: Memory, length: int) -> Tensor:
    """Return keys and values as (2, width, tokens), of the only row that there is."""
    keys, values = memory.so_far(length)
    return torch.stack([keys[0], values[0]]).transpose(2, 3).flatten(1, 2)
