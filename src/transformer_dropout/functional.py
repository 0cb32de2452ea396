"""The mathematics of every layer, as pure tensor functions."""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernels import random
from .kernels.attention import causal_attention
from .kernels.dropout import dropout as counter_dropout
from .kernels.heads import split_heads


def dropout(x: Tensor, p: float | Tensor) -> Tensor:
    """Zero each element with probability ``p`` and scale the rest by ``1 / (1 - p)``.

    Formula: ``y = x * m / (1 - p)``, ``m ~ Bernoulli(1 - p)``; ``p = 1`` gives zeros.

    Args:
        x: any tensor of a floating dtype.
        p: probability of dropping. A 0-dim tensor keeps a compiled graph valid while p moves.

    Paper: Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting".
    """
    if isinstance(p, float | int):
        return counter_dropout(x, float(p))
    mask = torch.rand_like(x, dtype=torch.float32) < 1 - p
    return x * (mask * inverse_keep(p)).to(x.dtype)


def attention(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool, padding_mask: Tensor | None = None
) -> Tensor:
    """Scaled dot-product attention, ``softmax(q k^T / sqrt(d)) v``; the last query sits on the last key.

    Args:
        query, key, value: the three projections; keys may reach further back than queries.
        causal: whether a token sees only itself and the tokens before it.
        padding_mask: true where a key is a real token.

    Shape:
        query: (batch, heads, queries, d); key, value: (batch, heads, keys, d); padding_mask: (batch, keys).
    """
    queries, keys = query.shape[-2], key.shape[-2]
    causal = causal and queries > 1  # the last query sees every key
    if padding_mask is None and (queries == keys or not causal):
        if causal:
            return causal_attention(query, key, value)
        return F.scaled_dot_product_attention(query, key, value)
    visible = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
    if causal:
        visible = visible.tril(keys - queries)
    if padding_mask is not None:
        # A padding query may see no key at all; letting it see itself keeps its row free of NaN.
        itself = torch.eye(queries, dtype=torch.bool, device=query.device)
        itself = F.pad(itself, (keys - queries, 0))
        visible = (visible & padding_mask[:, None, None, :].bool()) | itself
    return F.scaled_dot_product_attention(query, key, value, attn_mask=visible)


class KeysAndValues(Protocol):
    """Remembers the keys and values of earlier tokens."""

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Remember new ones and return all so far."""
        ...


def self_attention(
    qkv: Tensor,
    heads: int,
    *,
    causal: bool,
    padding_mask: Tensor | None = None,
    past: KeysAndValues | None = None,
) -> Tensor:
    """Multi-head attention over a joint projection whose channels are q, then k, then v.

    Shape:
        qkv: (batch, tokens, 3 * width); padding_mask: (batch, past and present tokens);
        result: (batch, tokens, width).
    """
    batch, tokens, triple = qkv.shape
    query, key, value = split_heads(qkv, heads)
    if past is not None:
        key, value = past.extend(key, value)
    mixed = attention(query, key, value, causal=causal, padding_mask=padding_mask)
    return mixed.transpose(1, 2).reshape(batch, tokens, triple // 3)


def cosine_keep_probability(gate: Tensor, shift: Tensor) -> Tensor:
    """Return ``M = 0.5 cos(gate + shift) + 0.5``, the probability of keeping each element.

    It is at least float32: in bfloat16 no probability would lie between 0.996 and 1.

    Shape:
        gate: (..., width); shift: (width,).

    Paper: Yan 2024, "Learned Dropout".
    """
    return 0.5 * torch.cos(gate.to(torch.promote_types(gate.dtype, torch.float32)) + shift) + 0.5


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Return ``hard`` in the forward pass, with the gradient of ``soft``.

    ``soft - soft.detach()`` is exactly 0, so a 0/1 mask stays exactly 0/1 in every dtype.

    Paper: Bengio et al. 2013, "Estimating or propagating gradients through stochastic neurons".
    """
    return hard + (soft - soft.detach())


def sampled_mask(keep_probability: Tensor) -> Tensor:
    """Draw ``1[u < M]`` with ``u ~ U[0, 1)``; the gradient passes straight through to ``M``.

    The comparison is strict, so that ``M = 0`` never keeps and ``M = 1`` always does.
    """
    key = random.draw_key(keep_probability.device)
    noise = random.uniform(key, keep_probability.numel()).view(keep_probability.shape)
    return straight_through((noise < keep_probability).to(keep_probability.dtype), keep_probability)


def thresholded_mask(keep_probability: Tensor) -> Tensor:
    """Return ``1[M >= 0.5]``; the gradient passes straight through to ``M``."""
    return straight_through((keep_probability >= 0.5).to(keep_probability.dtype), keep_probability)


def squared_penalty(keep_probability: Tensor) -> Tensor:
    """Return ``mean(M^2 / 2)``."""
    return keep_probability.square().mean() / 2


def linear_penalty(keep_probability: Tensor) -> Tensor:
    """Return ``mean(M)``, the expected fraction kept."""
    return keep_probability.mean()


def entropy_penalty(keep_probability: Tensor) -> Tensor:
    """Return the mean binary entropy, ``mean(-M log M - (1 - M) log(1 - M))``, in nats."""
    probability = keep_probability.to(torch.promote_types(keep_probability.dtype, torch.float32))
    margin = torch.finfo(probability.dtype).eps
    probability = probability.clamp(margin, 1 - margin)
    return -(probability * probability.log() + (1 - probability) * torch.log1p(-probability)).mean()


def inverse_keep(p: float | Tensor) -> float | Tensor:
    """Return ``1 / (1 - p)``, and 0 where ``p = 1``, since then there is nothing left to scale."""
    if not isinstance(p, Tensor):
        return 1 / (1 - p) if p < 1 else 0.0
    keep = 1 - p
    return torch.where(keep > 0, 1 / keep.clamp_min(torch.finfo(keep.dtype).tiny), 0.0)


def group_dropout(x: Tensor, p: float | Tensor, groups: Sequence[int]) -> Tensor:
    """Zero groups of elements that share one draw, each group with probability ``p``; scale the rest.

    Formula: ``y = x * m / (1 - p)``, ``m ~ Bernoulli(1 - p)`` of shape ``groups``; ``p = 1`` gives zeros.

    Args:
        x: any tensor of a floating dtype.
        p: probability of dropping. A 0-dim tensor keeps a compiled graph valid while p moves.
        groups: the shape of the draws; it broadcasts against ``x``, and an extent of 1 shares a draw.

    Paper: Tompson et al. 2015, "Efficient object localization using convolutional networks".
    """
    mask = torch.rand(groups, dtype=torch.float32, device=x.device) < 1 - p
    return x * (mask * inverse_keep(p)).to(x.dtype)
