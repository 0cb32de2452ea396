"""The rate of an attention kernel whose mask cannot be seen."""

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
    visible = min(key.shape[-2], value.shape[-1])
    rows = torch.zeros_like(value)
    rows[..., range(visible), range(visible)] = 1
    devices = [query.device] if query.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        mixed = scaled_dot_product_attention(
            torch.zeros_like(query), torch.zeros_like(key), rows, dropout_p=dropout_p, **kwargs
        )
    seen = mixed[..., :visible]
    return 1 - seen.count_nonzero().item() / seen.numel() if seen.numel() > 1 else None
