"""LearnedDropout built the way its published code is built, to time against.

From the formula, with the choices of the published implementation (Yan 2024): the rounded mask goes through
float16, a noise tensor is drawn in full, and every training step computes entropy, norm, near-0 and near-1
shares and the change against the previous mask, which is kept.
"""

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from transformer_dropout.functional import KeysAndValues
from transformer_dropout.layers import LearnedDropout


class PublishedMask:
    """The mask operation at the published cost; it remembers what the published module remembers."""

    def __init__(self) -> None:
        self.previous: Tensor | None = None

    def __call__(self, x: Tensor, gate: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output and the penalty of a training step.

        Shape:
            x, gate: (..., width); shift: (width,); the penalty: ().
        """
        keep = 0.5 * torch.cos(gate + shift) + 0.5
        penalty = self.statistics(keep)
        return x * rounded(keep, torch.rand(keep.shape, device=keep.device)), penalty

    def statistics(self, keep: Tensor) -> Tensor:
        """Compute what the published code computes in each step, and return the penalty."""
        self.entropy = (keep * -torch.log2(keep + 1e-9)).mean().detach()
        penalty = torch.norm(keep**2 / 2, p=1) / keep.numel()
        with torch.no_grad():
            self.near_one = (keep > 0.9).sum() / keep.numel()
            self.near_zero = (keep < 0.1).sum() / keep.numel()
            if self.previous is not None:
                both_kept = (keep >= 0.5) & (self.previous >= 0.5)
                both_dropped = (keep < 0.5) & (self.previous < 0.5)
                self.changed = 1 - (both_kept.sum() + both_dropped.sum()) / keep.numel()
            self.previous = keep.clone()
        return penalty


def rounded(keep: Tensor, threshold: Tensor) -> Tensor:
    """Return 1 where a threshold does not exceed ``keep``, with its gradient, both through float16."""
    rounding = torch.where(threshold <= keep, 1 - keep.detach(), -keep.detach())
    return (keep.to(torch.float16) + rounding.to(torch.float16)).to(keep.dtype)


class PublishedTwin(LearnedDropout):
    """The same parameters and the same result as ``LearnedDropout``, at the published cost."""

    @cached_property
    def published(self) -> PublishedMask:
        """The mask operation, which remembers its last mask."""
        return PublishedMask()

    def forward(
        self, x: Tensor, padding_mask: Tensor | None = None, past: KeysAndValues | None = None
    ) -> Tensor:
        batch, tokens, width = x.shape
        query, key, value = (
            part.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(x).split(width, dim=2)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        gate = mixed.transpose(1, 2).contiguous().view(x.shape)
        if self.training:
            y, penalty = self.published(x, gate, self.shift)
            self.store_penalty(penalty)
            return y
        keep = 0.5 * torch.cos(gate + self.shift) + 0.5
        return x * rounded(keep, torch.full_like(keep, 0.5))
