"""The rate of an attention kernel whose mask cannot be seen."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def probe_attention(
    query: Tensor, key: Tensor, value: Tensor, dropout_p: float, **kwargs: Any
) -> float | None:
    """Return the fraction of attention weights that the kernel for these tensors really drops.

    Equal scores give every key the same weight, and values that are rows of the identity bring the dropped
    weights to the output as zeros.

    Args:
        query, key, value: those of the call that is examined; shapes and dtypes choose the kernel.
        dropout_p: its rate.
        kwargs: its ``scale`` and ``enable_gqa``.

    Returns:
        None where fewer than two values would be seen.
    """
    rows = identity_rows(value)
    visible = min(value.shape[-2:])
    devices = [query.device] if query.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        mixed = scaled_dot_product_attention(
            torch.zeros_like(query), torch.zeros_like(key), rows, dropout_p=dropout_p, **kwargs
        )
    seen = mixed[..., :visible]
    return 1 - seen.count_nonzero().item() / seen.numel() if seen.numel() > 1 else None


def probe_causal_attention(
    attend: Callable[..., tuple[Tensor, ...]], query: Tensor, key: Tensor, value: Tensor, dropout_p: float
) -> float | None:
    """Return the fraction of attention weights that a causal kernel really drops, of those that it may see.

    Args:
        attend: the kernel, ``(query, key, value, dropout_p)`` to the mixed values and what else it keeps.
        query, key, value: those of the call that is examined.
        dropout_p: its rate.
    """
    visible = min(value.shape[-2:])
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        mixed = attend(torch.zeros_like(query), torch.zeros_like(key), identity_rows(value), dropout_p)[0]
    seen = torch.ones_like(mixed[..., :visible]).tril().count_nonzero().item()
    return 1 - mixed[..., :visible].tril().count_nonzero().item() / seen if seen > 1 else None


def identity_rows(value: Tensor) -> Tensor:
    """Return rows of the identity in place of values, as many as there are channels."""
    rows = torch.zeros_like(value)
    diagonal = range(min(value.shape[-2:]))
    rows[..., diagonal, diagonal] = 1
    return rows
