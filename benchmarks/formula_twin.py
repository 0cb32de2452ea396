"""A slow twin of LearnedDropout, line by line from the formula, to test it against."""

import math

import torch
from torch import Tensor, nn


class ReferenceLearnedDropout(nn.Module):
    """``LearnedDropout`` line by line from its formula: one head, one product, one mask at a time.

    It takes the same arguments, draws the same noise from the same seed and has the same ``state_dict``
    keys, so weights copy over. The penalty of the last forward is in ``last_penalty``, its mask in
    ``last_mask``.

    Shape:
        x: (batch, tokens, width); padding_mask: (batch, tokens), true at real tokens.

    Paper: Yan 2024, "Learned Dropout".
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        shift: float = 0.0,
        causal: bool = True,
        bias: bool = False,
        eval_mask: str = "threshold",
        penalty: str | None = "squared",
        detach: bool = False,
    ) -> None:
        super().__init__()
        self.width, self.heads, self.causal = width, heads, causal
        self.eval_mask, self.penalty, self.detach = eval_mask, penalty, detach
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.shift = nn.Parameter(torch.full((width,), float(shift)))
        nn.init.normal_(self.qkv.weight, std=0.02)
        if bias:
            nn.init.zeros_(self.qkv.bias)
        self.last_penalty: Tensor | None = None
        self.last_mask: Tensor | None = None

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        keep = self.keep_probability(x.detach() if self.detach else x, padding_mask)
        self.last_penalty = self.penalty_of(keep, padding_mask) if self.penalty is not None else None
        self.last_mask = self.mask(keep)
        return x * self.last_mask

    def keep_probability(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Return ``M = 0.5 cos(attention + shift) + 0.5``."""
        queries, keys, values = self.projections(x)
        mixed = [
            self.one_head(queries[..., channels], keys[..., channels], values[..., channels], padding_mask)
            for channels in self.channels_of_heads()
        ]
        return 0.5 * torch.cos(torch.cat(mixed, dim=-1) + self.shift) + 0.5

    def projections(self, x: Tensor) -> list[Tensor]:
        """Return ``X W_q``, ``X W_k`` and ``X W_v``; the rows of the weight are q, then k, then v."""
        results = []
        for part in range(3):
            rows = slice(part * self.width, (part + 1) * self.width)
            projected = x @ self.qkv.weight[rows].T
            results.append(projected if self.qkv.bias is None else projected + self.qkv.bias[rows])
        return results

    def channels_of_heads(self) -> list[slice]:
        """Return the channels of each head."""
        size = self.width // self.heads
        return [slice(head * size, (head + 1) * size) for head in range(self.heads)]

    def one_head(self, query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Return ``softmax(q k^T / sqrt(d)) v`` of one head."""
        scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
        scores = scores.masked_fill(self.hidden(scores, padding_mask), -math.inf)
        exponentials = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
        return exponentials / exponentials.sum(dim=-1, keepdim=True) @ value

    def hidden(self, scores: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Return where a token does not look: at later tokens, and at padding other than itself."""
        batch, tokens, _ = scores.shape
        hidden = torch.zeros_like(scores, dtype=torch.bool)
        for row in range(batch):
            for query in range(tokens):
                for key in range(tokens):
                    later = self.causal and key > query
                    padding = padding_mask is not None and not padding_mask[row, key] and key != query
                    hidden[row, query, key] = later or padding
        return hidden

    def mask(self, keep: Tensor) -> Tensor:
        """Return the mask of this mode, with the gradient of ``keep``."""
        if not self.training and self.eval_mask == "mean":
            return keep
        if self.training or self.eval_mask == "sample":
            hard = torch.where(self.noise(keep) < keep, 1.0, 0.0)
        else:
            hard = torch.where(keep >= 0.5, 1.0, 0.0)
        return hard.to(keep.dtype) + (keep - keep.detach())

    def noise(self, keep: Tensor) -> Tensor:
        """Return a number of [0, 1) for each element: a hash of its index and of a key from the seed."""
        first, second = torch.randint(-(2**31), 2**31, (2,), dtype=torch.int32, device=keep.device).tolist()
        word = 2**32 - 1
        x = torch.arange(keep.numel(), device=keep.device)
        x = (x * 0x9E3779B9 + first) & word
        x = x ^ (x >> 16)
        x = (x * 0x21F0AAAD) & word
        x = x ^ (second & word)
        x = x ^ (x >> 15)
        x = (x * 0x735A2D97) & word
        x = x ^ (x >> 15)
        return ((x >> 8).to(torch.float32) / 2**24).view(keep.shape)

    def penalty_of(self, keep: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Return the mean over real tokens of ``M^2 / 2``, ``M`` or the binary entropy of ``M``."""
        real = keep if padding_mask is None else keep[padding_mask.bool()]
        if self.penalty == "squared":
            return (real**2 / 2).mean()
        if self.penalty == "linear":
            return real.mean()
        # Away from 0 and 1 by one rounding error, where the logarithm is finite.
        margin = torch.finfo(real.dtype).eps
        real = real.clamp(margin, 1 - margin)
        return -(real * real.log() + (1 - real) * (1 - real).log()).mean()
