"""Causal attention in the dtype that a processor is fast in."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._native import dense, watched


def causal_attention(query, key, value):
    if watched() or not all(map(dense, (query, key, value))) or torch.float32==query.dtype and not torch.is_autocast_enabled("cpu"):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    with torch.autocast("cpu", enabled=False):
        mixed = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), is_causal=True)
    return mixed.to(query.dtype)
