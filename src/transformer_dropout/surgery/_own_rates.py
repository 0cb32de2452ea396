"""Rates that a model's own code reads when it drops: moved without another compilation.

Eager code reads the number itself. A compiled graph would be built anew for each value of it, so there the
number stands still at a mark that no one would choose, and each call that is given the mark is taken over by
dropout whose rate is a tensor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .. import functional
from ..errors import InputError
from ._attention import attention_weights, scaled_dot_product

# The first reader's mark; so small that a call which nothing takes over drops nothing, not too much.
MARK = 2.0**-30


@dataclass(kw_only=True)
class Read:
    """A rate that a module's code reads.

    Attributes:
        reader: the module whose forward reads it.
        owner: the module that holds it.
        name: the attribute of the owner.
        buffer: the name of the reader's buffer with the same number.
        mark: what compiled code reads in its place.
        p: the rate itself.
        ran: whether the reader has run in training.
    """

    reader: nn.Module
    owner: nn.Module
    name: str
    buffer: str
    mark: float
    p: float = 0.0
    ran: bool = False

    def set(self, p: float) -> None:
        """Set the rate for eager and for compiled code."""
        self.p = p
        setattr(self.owner, self.name, p)
        getattr(self.reader, self.buffer).fill_(p)

    def dropout(self, x: Tensor) -> Tensor:
        """Drop at the rate in the buffer; the caller says whether it is training."""
        return functional.dropout(x, getattr(self.reader, self.buffer))


def forward_with_rates(forward: Any, reads: Sequence[Read], *args: Any, **kwargs: Any) -> Any:
    """Run a module's forward, in a graph with marks for the rates and in eager code with the rates."""
    for read in reads:
        if read.reader.training:
            # Written, never read, as the marks are.
            read.ran = True
    if torch.compiler.is_compiling():
        for read in reads:
            # Written, never read: so the graph does not depend on the number.
            setattr(read.owner, read.name, read.mark)
        with MarkedDropouts(reads):
            return forward(*args, **kwargs)
    for read in reads:
        if getattr(read.owner, read.name) == read.mark:
            setattr(read.owner, read.name, read.p)
    return forward(*args, **kwargs)


class MarkedDropouts(TorchFunctionMode):
    """Takes over the calls of dropout and attention whose rate is a mark.

    Args:
        reads: the rates.
    """

    def __init__(self, reads: Sequence[Read]) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        for read in self.reads:
            if read.mark in [value for value in (*args, *kwargs.values()) if type(value) is float]:
                return taken_over(read, func, args, kwargs)
        # The method, in Python, is one that the compiler cannot follow under a mode.
        return (torch.unflatten if func is Tensor.unflatten else func)(*args, **kwargs)


def taken_over(read: Read, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Call a function that was given a mark, with dropout at the rate that it stands for.

    Raises:
        InputError: for a function that is neither dropout nor attention.
    """
    if func is F.scaled_dot_product_attention:
        return fused_attention(read, *args, **kwargs)
    if func is F.multi_head_attention_forward:
        return multi_head_attention(read, *args, **kwargs)
    if func is F.dropout or func is torch.dropout:
        return plain_dropout(read, *args, **kwargs)
    raise InputError(
        f"{type(read.owner).__name__}.{read.name} is given to {getattr(func, '__name__', func)}, where "
        "torch.compile would compile anew for each rate; do not compile this module, or hold the rate still."
    )


def plain_dropout(
    read: Read, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, **others: Any
) -> Tensor:
    """As ``F.dropout`` and ``torch.dropout``, which calls ``training`` ``train``."""
    return read.dropout(input) if others.get("train", training) else input


def fused_attention(
    read: Read,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """As ``F.scaled_dot_product_attention``, written out; it does not look at ``training``, so this does."""
    if not read.reader.training:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    return scaled_dot_product(read.dropout, query, key, value, attn_mask, is_causal, scale, enable_gqa)


def multi_head_attention(
    read: Read,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """As ``F.multi_head_attention_forward``, written out.

    Shape:
        query: (queries, batch, width), or (queries, width) without a batch; key, value: the same of keys.
    """
    single = query.dim() == 2
    if single:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
    separate = tuple(others.get(f"{name}_proj_weight") for name in "qkv")
    projections: Any = separate if in_proj_weight is None else in_proj_weight.chunk(3)
    biases = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)
    query, key, value = map(F.linear, (query, key, value), projections, biases)
    bias = bias_of_masks(others, query, key, num_heads)
    if bias_k is not None and bias_v is not None:
        key, value = with_token(key, bias_k), with_token(value, bias_v)
    if add_zero_attn:
        key, value = with_token(key, 0.0), with_token(value, 0.0)
    if bias is not None:
        bias = F.pad(bias, (0, key.shape[0] - bias.shape[-1]))
    query, key, value = (x.unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3) for x in (query, key, value))
    dropout = read.dropout if others.get("training", True) else nn.Identity()
    weights = attention_weights(dropout, query, key, scaling=query.shape[-1] ** -0.5, bias=bias)
    mixed = F.linear((weights @ value).permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
    if others.get("average_attn_weights", True):
        weights = weights.mean(1)
    if single:
        mixed, weights = mixed.squeeze(1), weights.squeeze(0)
    return mixed, weights if others.get("need_weights", True) else None


def bias_of_masks(given: Mapping[str, Any], query: Tensor, key: Tensor, heads: int) -> Tensor | None:
    """Return what the masks given to ``F.multi_head_attention_forward`` add to the scores.

    Shape:
        query: (queries, batch, width); key: (keys, batch, width); result: (1 or batch, 1 or heads, 1 or
        queries, keys).
    """
    hidden, padding = given.get("attn_mask"), given.get("key_padding_mask")
    parts = []
    if hidden is not None:
        parts.append(
            as_bias(hidden, query.dtype).view(
                -1, heads if hidden.dim() == 3 else 1, query.shape[0], key.shape[0]
            )
        )
    if padding is not None:
        parts.append(as_bias(padding, query.dtype).view(-1, 1, 1, key.shape[0]))
    return sum(parts[1:], parts[0]) if parts else None


def with_token(x: Tensor, token: Any) -> Tensor:
    """Return a sequence (tokens, batch, width) with one more token at its end, the same in each sample."""
    return torch.cat([x, x.new_zeros(1, *x.shape[1:]) + token])


def as_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what to add to scores for a mask of torch's: true is hidden, numbers are added as they are."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))
    return mask.to(dtype)
