"""LearnedDropout whose masks all come from the embeddings, before the first block runs."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .. import functional
from ..errors import InputError
from ._token_gate import TokenGate
from .learned_dropout import EvalMask, LearnedDropout, PenaltyName, check_heads, gate_by_threshold


class MaskEmbedding(nn.Module):
    """One attention with output projection over the embeddings, shared by the masks of all blocks.

    Formula: ``E = softmax(q k^T / sqrt(d)) v W_o`` with ``q, k, v`` projected from token + position
    embeddings. The last result stays in ``current`` for the layers that read it.

    Shape:
        embedding: (batch, tokens, width), and so the result.

    Paper: Yan 2024, "Learned Dropout", pre-computed masks.
    """

    # As layers say it.
    looks_at_tokens = True

    def __init__(self, width: int, heads: int, *, causal: bool = True, bias: bool = False) -> None:
        super().__init__()
        check_heads(width, heads)
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.projection = nn.Linear(width, width, bias=bias)
        for linear in (self.qkv, self.projection):
            nn.init.normal_(linear.weight, std=0.02)
            if bias:
                nn.init.zeros_(linear.bias)
        self.current: Tensor | None = None

    @classmethod
    def for_rule(cls, width: int, causal: bool, arguments: Mapping[str, Any]) -> "MaskEmbedding":
        """Make the module that the layers of one rule share, from the arguments of those layers."""
        source = cls(width, arguments["heads"], causal=causal, bias=arguments.get("bias", False))
        return source.requires_grad_(not arguments.get("detach", True))

    def forward(
        self,
        embedding: Tensor,
        padding_mask: Tensor | None = None,
        past: functional.KeysAndValues | None = None,
    ) -> Tensor:
        mixed = functional.self_attention(
            self.qkv(embedding), self.heads, causal=self.causal, padding_mask=padding_mask, past=past
        )
        self.current = self.projection(mixed)
        return self.current

    def __getstate__(self) -> dict:
        # The last result is part of an autograd graph, which can be neither copied nor pickled.
        return super().__getstate__() | {"current": None}


class PrecomputedLearnedDropout(LearnedDropout):
    """``LearnedDropout`` whose mask is computed from a shared ``MaskEmbedding`` instead of the input.

    Args:
        source: the shared attention over the embeddings; `regularize_` makes and places it.
        detach: whether the masks' gradient stops at the shared attention, as published. Then that
            attention is never trained.

    The other arguments, the shape and the errors are those of ``LearnedDropout``; its width must be that of
    the embeddings.

    Paper: Yan 2024, "Learned Dropout", pre-computed masks.
    """

    shared_source = MaskEmbedding

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        source: MaskEmbedding,
        shift: float = 0.0,
        bias: bool = False,
        eval_mask: EvalMask = "threshold",
        penalty: PenaltyName | None = "squared",
        detach: bool = True,
    ) -> None:
        embedding = source.qkv.in_features
        if width != embedding:
            raise InputError(
                f"PrecomputedLearnedDropout masks what is as wide as the embeddings, {embedding}, but this "
                f"site is {width} wide; select mlp_output or attention_output, or write LearnedDropout."
            )
        super().__init__(
            width,
            heads,
            shift=shift,
            causal=source.causal,
            bias=bias,
            eval_mask=eval_mask,
            penalty=penalty,
            detach=detach,
        )
        # In a tuple, so that the shared module is a child of one module only and saved once.
        self._source = (source,)

    def token_gate(self) -> TokenGate | None:
        source = self._source[0]
        ours = type(self) is PrecomputedLearnedDropout and type(source) is MaskEmbedding and source.causal
        return gate_by_threshold(self, source) if ours else None

    def mask_input(self, x: Tensor) -> Tensor:
        embedding = self._source[0].current
        if embedding is None or embedding.shape[:-1] != x.shape[:-1]:
            raise InputError(
                "PrecomputedLearnedDropout ran without its embeddings; place it with td.regularize_ on a "
                "model that has an embedding site."
            )
        return super().mask_input(embedding)
