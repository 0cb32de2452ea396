"""A known decoder's step of one token as the fewest PyTorch operations, on any device and in any dtype.

At one token an operation takes a few microseconds whatever it computes, and a module's call as much again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.mask import widened
from ...layers import TokenGate
from .decoder import Block, Decoder
from .decoder_parts import blocks_of, gates_of, matrices_and_norms, source_of
from .memory import Memory

WeightAndBias = tuple[Tensor, Tensor | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """A learned mask: its projection, its shift, whether it reads the embeddings, what it remembers."""

    qkv: WeightAndBias
    shift: Tensor
    early: bool
    memory: Memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """The weights of a block in the order in which they act, and what its attention remembers."""

    attention_norm: WeightAndBias
    qkv: WeightAndBias
    projection: WeightAndBias
    mlp_norm: WeightAndBias
    expand: WeightAndBias
    contract: WeightAndBias
    memory: Memory
    attention_gate: Gate | None
    mlp_gate: Gate | None


class PlainReader:
    """Reads one more token in each row.

    Args:
        model: of which `has_known_parts_only` holds.
        memories: what each attending module remembers; they are read and extended.
    """

    def __init__(self, model: Decoder, memories: Mapping[nn.Module, Memory]) -> None:
        self._embedding, self._norm = model.embedding, weight_and_bias(model.norm)
        self._width = (model.config.width,)
        self._blocks = [parts_of(block, memories) for block in blocks_of(model)]
        self._source = source_of(model)
        self._source_memory = None if self._source is None else memories[self._source]

    def features(self, tokens: Tensor, positions: Tensor, seen: Tensor | None) -> Tensor:
        """Return what the output layer reads.

        Args:
            tokens: one in each row.
            positions: theirs.
            seen: true at real tokens, these included; None where there is no padding.

        Shape:
            tokens: (batch,); positions: (batch,) or (1,); seen: (batch, tokens); result: (batch, width).
        """
        seen = None if seen is None else seen[:, None, None]
        weights = self._embedding.token.weight, self._embedding.position.weight
        x = F.embedding(tokens, weights[0]) + F.embedding(positions, weights[1])
        early = x
        if self._source is not None and self._source_memory is not None:
            mixed = self._source_memory.mix(F.linear(x, *weight_and_bias(self._source.qkv)), seen)
            early = F.linear(mixed, *weight_and_bias(self._source.projection))
        for block in self._blocks:
            qkv = F.linear(F.layer_norm(x, self._width, *block.attention_norm), *block.qkv)
            y = F.linear(block.memory.mix(qkv, seen), *block.projection)
            x = x + masked(y, block.attention_gate, early, seen)
            hidden = F.gelu(F.linear(F.layer_norm(x, self._width, *block.mlp_norm), *block.expand))
            x = x + masked(F.linear(hidden, *block.contract), block.mlp_gate, early, seen)
        return F.layer_norm(x, self._width, *self._norm)


def masked(y: Tensor, gate: Gate | None, early: Tensor, seen: Tensor | None) -> Tensor:
    """Return ``y`` times its learned mask, if it has one: 1 where ``cos(attention + shift) >= 0``."""
    if gate is None:
        return y
    mixed = gate.memory.mix(F.linear(early if gate.early else y, *gate.qkv), seen)
    return y * ((widened(mixed) + gate.shift).cos_() >= 0)


def weight_and_bias(module: Any) -> WeightAndBias:
    """Return the two tensors of a linear layer or a norm."""
    return module.weight, module.bias


def parts_of(block: Block, memories: Mapping[nn.Module, Memory]) -> Parts:
    """Return a block's weights and memories."""
    first, second = (
        None if gate is None else gate_of(gate, memories[gate.layer]) for gate in gates_of(block)
    )
    attention_norm, qkv, projection, mlp_norm, expand, contract = map(
        weight_and_bias, matrices_and_norms(block)
    )
    return Parts(
        attention_norm=attention_norm,
        qkv=qkv,
        projection=projection,
        mlp_norm=mlp_norm,
        expand=expand,
        contract=contract,
        memory=memories[block.attention],
        attention_gate=first,
        mlp_gate=second,
    )


def gate_of(gate: TokenGate, memory: Memory) -> Gate:
    """Return a learned mask's weights and memory."""
    early = gate.source is not None
    return Gate(qkv=weight_and_bias(gate.qkv), shift=gate.shift, early=early, memory=memory)
