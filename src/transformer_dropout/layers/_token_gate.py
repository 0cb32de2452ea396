"""A learned mask as a decoder may compute it by itself, one token at a time."""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class TokenGate:
    """A causal mask of evaluation: 1 where ``cos(softmax(q k^T / sqrt(d)) v + shift) >= 0``.

    Attributes:
        layer: the layer whose mask it is.
        qkv: what projects the masked tensor, or the source's output.
        shift: added to what the attention mixes.
        heads: of the attention.
        source: the attention over the embeddings that the mask is computed from; None for one computed from
            what it masks.
    """

    layer: nn.Module
    qkv: nn.Linear
    shift: Tensor
    heads: int
    source: nn.Module | None = None
