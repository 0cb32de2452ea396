"""LearnedDropout built the way its published code is built, to time against.

From the formula, with the choices of the published implementation (Yan 2024): the rounded mask goes through
float16, a noise tensor is drawn in full, and every training step computes entropy, norm, near-0 and near-1
shares and the change against the previous mask, which is kept.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from transformer_dropout.functional import KeysAndValues
from transformer_dropout.layers import LearnedDropout


class PublishedTwin(LearnedDropout):
    """The same parameters and the same result as ``LearnedDropout``, at the published cost."""

    previous: Tensor | None = None

    def forward(
        self, x: Tensor, padding_mask: Tensor | None = None, past: KeysAndValues | None = None
    ) -> Tensor:
        batch, tokens, width = x.shape
        query, key, value = (
            part.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(x).split(width, dim=2)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        keep = 0.5 * torch.cos(mixed.transpose(1, 2).contiguous().view(x.shape) + self.shift) + 0.5
        if self.training:
            self.statistics(keep)
        threshold = (
            torch.rand(keep.shape, device=keep.device) if self.training else torch.full_like(keep, 0.5)
        )
        rounding = torch.where(threshold <= keep, 1 - keep.detach(), -keep.detach())
        mask = (keep.to(torch.float16) + rounding.to(torch.float16)).to(torch.float32)
        return x * mask

    def statistics(self, keep: Tensor) -> None:
        """Compute what the published code computes in each step, and the penalty."""
        self.entropy = (keep * -torch.log2(keep + 1e-9)).mean().detach()
        self.store_penalty(torch.norm(keep**2 / 2, p=1) / keep.numel())
        with torch.no_grad():
            self.near_one = (keep > 0.9).sum() / keep.numel()
            self.near_zero = (keep < 0.1).sum() / keep.numel()
            if self.previous is not None:
                both_kept = (keep >= 0.5) & (self.previous >= 0.5)
                both_dropped = (keep < 0.5) & (self.previous < 0.5)
                self.changed = 1 - (both_kept.sum() + both_dropped.sum()) / keep.numel()
            self.previous = keep.clone()
