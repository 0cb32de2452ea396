"""LearnedDropout whose masks all come from the embeddings, before the first block runs."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional
from ..errors import InputError
from ..kernels.linear import is_fast
from ..kernels.linear import linear as fast_linear
from ..kernels.mlp import bare
from ._token_gate import TokenGate
from .learned_dropout import EvalMask, LearnedDropout, PenaltyName, check_heads, gate_by_threshold


class MaskEmbedding(nn.Module):
    """One attention with output projection over the embeddings, and the gates of all blocks' masks from it.

    Formula: ``E = softmax(q k^T / sqrt(d)) v W_o`` with ``q, k, v`` projected from token + position
    embeddings. From E, before the first block runs, one product with the projections of all the layers that
    share it and one attention, each layer's heads beside the others', give every layer's gate.

    Attributes:
        current: E of the last forward.
        gates: by layer, what attention mixed for it in the last forward; None where each layer has to compute
            its own, in its block: in cached decoding, where each remembers its own keys, and where a layer's
            projection is not a plain one with its weights at hand (sharded, adapted, on another device).
        padding_mask: what the last forward was told of padding.

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
        self.gates: tuple[Tensor, ...] | None = None
        self.padding_mask: Tensor | None = None
        # A list, so that the layers are children of the blocks alone.
        self.layers: list[PrecomputedLearnedDropout] = []

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
        if embedding.dim() != 3:
            raise InputError(
                "PrecomputedLearnedDropout takes embeddings (batch, tokens, width), not a tensor of "
                f"{tuple(embedding.shape)}; use LearnedDropout, which reads what it masks."
            )
        mixed = functional.self_attention(
            self.qkv(embedding), self.heads, causal=self.causal, padding_mask=padding_mask, past=past
        )
        self.current = self.projection(mixed)
        self.padding_mask, self.gates = padding_mask, None
        if past is None and at_hand([layer.qkv for layer in self.layers], self.current):
            self.gates = all_gates(self.layers, self.current, self.causal, padding_mask)
        return self.current

    def __getstate__(self) -> dict:
        # The last results are part of an autograd graph, which can be neither copied nor pickled.
        return super().__getstate__() | {"current": None, "gates": None, "padding_mask": None}


def at_hand(projections: list[nn.Linear], x: Tensor) -> bool:
    """Return whether these are plain linear layers of one kind whose weights can be laid side by side."""
    if not projections:
        return False
    fast, first = is_fast(projections[0]), projections[0].weight
    # A weight that is sharded is of a class of its own.
    return all(
        bare(each, nn.Linear)
        and is_fast(each) is fast
        and type(each.weight) is type(first) is nn.Parameter
        and each.weight.device == x.device
        for each in projections
    )


def all_gates(
    layers: "list[PrecomputedLearnedDropout]", embedding: Tensor, causal: bool, padding_mask: Tensor | None
) -> tuple[Tensor, ...]:
    """Return what attention mixes for each of some layers, from one product and one attention.

    It is ``layer.gate(embedding)`` for each of them. The rows of their joint weight are the q of all layers,
    then the k, then the v, so that all heads lie side by side.

    Shape:
        embedding: (batch, tokens, width), and so each result.
    """
    projections = [layer.qkv for layer in layers]
    width, number = embedding.shape[-1], len(layers)
    weight = torch.stack([each.weight.view(3, width, width) for each in projections], dim=1)
    bias = None
    if projections[0].bias is not None:
        bias = torch.stack([each.bias.view(3, width) for each in projections], dim=1).flatten()
    multiply = fast_linear if is_fast(projections[0]) else F.linear
    qkv = multiply(layers[0].mask_source(embedding), weight.view(-1, width), bias)
    mixed = functional.self_attention(qkv, number * layers[0].heads, causal=causal, padding_mask=padding_mask)
    # Each layer's part in one piece of memory, as the masks' loops read it.
    return mixed.unflatten(-1, (number, width)).movedim(-2, 0).contiguous().unbind(0)


class PrecomputedLearnedDropout(LearnedDropout):
    """``LearnedDropout`` whose mask is computed from a shared ``MaskEmbedding`` instead of the input.

    All layers' gates are computed before the first block runs, in one product and one attention; what is left
    for a block is the cosine, the draw and the product with its input.

    Args:
        source: the shared attention over the embeddings; `regularize_` makes and places it.
        detach: whether the masks' gradient stops at the shared attention, as published. Then that
            attention is never trained.

    The other arguments, the shape and the errors are those of ``LearnedDropout``; its width must be that of
    the embeddings, and heads, bias and detach those of the other layers of its source.

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
        for other in source.layers:
            if (other.heads, other.qkv.bias is not None, other.detach) != (heads, bias, detach):
                raise InputError(
                    "The layers that share a MaskEmbedding have the same heads, bias and detach; give this "
                    "one a MaskEmbedding of its own."
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
        self._place = len(source.layers)
        source.layers.append(self)

    def mask_source(self, embedding: Tensor) -> Tensor:
        """Return E as the masks read it: with or without its gradient."""
        return embedding.detach() if self.detach else embedding

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
        return self.mask_source(embedding)

    def gate(
        self,
        mask_input: Tensor,
        padding_mask: Tensor | None = None,
        past: functional.KeysAndValues | None = None,
    ) -> Tensor:
        source = self._source[0]
        if past is None and source.gates is not None and padding_mask is source.padding_mask:
            return source.gates[self._place]
        return super().gate(mask_input, padding_mask, past)
