"""Causal attention whose weights may be dropped, without keeping the weights or the mask.

On a processor PyTorch's fused attention takes longer in bfloat16 than in float32, and has no
dropout: with a rate it writes the weights out and keeps them, and a mask beside them.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._native import DTYPES, dense, has_native, is_transformed
from ._operations import operation
from .dropout import mask_numbers
from .random import draw_key, random_bits
from .torch_internals import softmax_backward

# Weights that the pure version holds at once, of as many heads as fit: what a cache near the core holds.
WEIGHTS = 262_144


def causal_attention(query: Tensor, key: Tensor, value: Tensor, p: float = 0.0) -> Tensor:
    """Return ``dropout(softmax(q k^T / sqrt(d))) v``, each query seeing its own token and those before.

    Ordinary tensors of a processor take a native loop, or products in chunks of heads where there is none;
    in float32 without a rate, and everywhere else, PyTorch's own attention is as fast.

    Args:
        query, key, value: of equally many tokens.
        p: probability of dropping a weight; what is kept is scaled by ``1 / (1 - p)``.

    Shape:
        (batch, heads, tokens, d), the result too.

    Paper: Dao et al. 2022, "FlashAttention"; Zehui et al. 2019, "DropAttention".
    """
    tensors = (query, key, value)
    # A compiler must not look into ``dense``, so it comes second.
    ordinary = not is_transformed() and all(
        dense(t) and t.dtype == query.dtype and t.dtype in DTYPES for t in tensors
    )
    if not ordinary or query.shape != key.shape:
        return F.scaled_dot_product_attention(*tensors, is_causal=True, dropout_p=p)
    if has_native() and torch.get_num_threads() == 1:
        return NativeAttention.apply(*tensors, p, None)
    with torch.autocast("cpu", enabled=False):
        wide = query.float(), key.float(), value.float()
        if p > 0:
            mixed = ChunkedAttention.apply(*wide, p, None)
        else:
            mixed = F.scaled_dot_product_attention(*wide, is_causal=True)
        return mixed.to(query.dtype)


def forward_flops(query: Tensor, *_: Any, out_val: Any = None) -> int:
    """Return the FLOPs of two products, as counters have them for attention, causal or not."""
    batch, heads, tokens, size = query.shape
    return 4 * batch * heads * tokens**2 * size


def backward_flops(gradient: Tensor, *_: Any, out_val: Any = None) -> int:
    """Return the FLOPs of five products, as counters have them where the weights are made again."""
    return 5 * forward_flops(gradient) // 2


@operation(
    "(Tensor query, Tensor key, Tensor value, float dropout_p) -> (Tensor, Tensor, Tensor)",
    random=True,
    flops=forward_flops,
)
def native_attention(query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> tuple[Tensor, ...]:
    """Return the mixed values, the logarithms of the weights' sums, and the key of the mask."""
    # Without a rate nothing is drawn, so that other layers have the same masks wherever this runs.
    random_key = draw_key() if dropout_p > 0 else torch.zeros(2, dtype=torch.int32)
    return *attended(query, key, value, dropout_p, random_key), random_key


def attended(
    query: Tensor, key: Tensor, value: Tensor, p: float, random_key: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the mixed values under a key, and the logarithms of the weights' sums."""
    from .native import attention as native

    return native.attended(query, key, value, (random_key, *mask_numbers(p)))


@operation(
    "(Tensor gradient, Tensor query, Tensor key, Tensor value, Tensor mixed, Tensor log_sum, "
    "Tensor random_key, float dropout_p) -> (Tensor, Tensor, Tensor)",
    flops=backward_flops,
)
def native_attention_backward(gradient: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values."""
    from .native import attention as native

    query, key, value, mixed, log_sum, random_key, p = others
    mask = (random_key, *mask_numbers(p))
    return native.gradients(gradient, query, key, value, mixed, log_sum, mask)


class NativeAttention(torch.autograd.Function):
    """``causal_attention`` in native loops."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, p: float, random_key: Tensor | None
    ) -> Tensor:
        if random_key is None:
            mixed, log_sum, random_key = native_attention(query, key, value, p)
        else:
            mixed, log_sum = attended(query, key, value, p, random_key)
        ctx.save_for_backward(query, key, value, mixed, log_sum, random_key)
        ctx.p = p
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        return *native_attention_backward(gradient, *ctx.saved_tensors, ctx.p), None, None


@operation(
    "(Tensor query, Tensor key, Tensor value, float dropout_p) -> (Tensor, Tensor)",
    random=True,
    flops=forward_flops,
)
def chunked_attention(query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> tuple[Tensor, Tensor]:
    """Return the mixed values, and the key of the mask."""
    random_key = draw_key()
    return mixed_in_chunks(query, key, value, dropout_p, random_key), random_key


def mixed_in_chunks(query: Tensor, key: Tensor, value: Tensor, p: float, random_key: Tensor) -> Tensor:
    """Return the mixed values under a key."""
    batch, heads, tokens, size = query.shape
    mixed = query.new_empty(batch, tokens, heads, size).transpose(1, 2)
    for b, part, q, k, v in chunks(query, key, value):
        weights = causal_weights(q, k)
        weights *= kept(weights, random_key, (b * heads + part.start) * tokens**2, p)
        mixed[b, part] = weights @ (v * mask_numbers(p)[1])
    return mixed


@operation(
    "(Tensor gradient, Tensor query, Tensor key, Tensor value, Tensor random_key, float dropout_p) "
    "-> (Tensor, Tensor, Tensor)",
    flops=backward_flops,
)
def chunked_attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, random_key: Tensor, dropout_p: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values."""
    tokens, heads, scale = query.shape[2], query.shape[1], query.shape[3] ** -0.5
    of_query, of_key, of_value = (torch.empty_like(tensor) for tensor in (query, key, value))
    for b, part, q, k, v in chunks(query, key, value):
        g = gradient[b, part] * mask_numbers(dropout_p)[1]
        weights = causal_weights(q, k)
        mask = kept(weights, random_key, (b * heads + part.start) * tokens**2, dropout_p)
        of_value[b, part] = (weights * mask).mT @ g
        of_weights = (g @ v.mT).mul_(mask)
        of_scores = softmax_backward(of_weights, weights)
        of_query[b, part] = (of_scores @ k).mul_(scale)
        of_key[b, part] = (of_scores.mT @ q).mul_(scale)
    return of_query, of_key, of_value


class ChunkedAttention(torch.autograd.Function):
    """``causal_attention`` in products of a few heads at a time; the backward makes the weights again."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, p: float, random_key: Tensor | None
    ) -> Tensor:
        if random_key is None:
            mixed, random_key = chunked_attention(query, key, value, p)
        else:
            mixed = mixed_in_chunks(query, key, value, p, random_key)
        ctx.save_for_backward(query, key, value, random_key)
        ctx.p = p
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        return *chunked_attention_backward(gradient, *ctx.saved_tensors, ctx.p), None, None


def chunks(query: Tensor, key: Tensor, value: Tensor) -> Iterator[tuple[int, slice, Tensor, Tensor, Tensor]]:
    """Yield the sequences' heads, a few at a time: the sequence, the heads, and their part of each tensor."""
    batch, heads, tokens, _ = query.shape
    size = max(1, WEIGHTS // tokens**2)
    for b in range(batch):
        for start in range(0, heads, size):
            part = slice(start, start + size)
            yield b, part, query[b, part], key[b, part], value[b, part]


def causal_weights(query: Tensor, key: Tensor) -> Tensor:
    """Return the softmax of the scores, each query seeing its own token and those before."""
    scores = (query * query.shape[-1] ** -0.5) @ key.mT
    future = torch.full_like(scores[0], -torch.inf).triu_(1)
    return scores.add_(future).softmax(dim=-1)


def kept(weights: Tensor, random_key: Tensor, start: int, p: float) -> Tensor:
    """Return 1 where a weight is kept and 0 where it is dropped.

    Args:
        weights: a few heads' weights.
        random_key: of ``random.draw_key``.
        start: index of the first among all weights.
        p: probability of dropping.
    """
    bits = random_bits(random_key, weights.numel(), start).view(weights.shape)
    # Written as numbers at once: filling by a mask of truth values takes longer.
    return torch.ge(bits, mask_numbers(p)[0], out=torch.empty_like(weights))
