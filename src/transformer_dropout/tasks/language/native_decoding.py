"""A known decoder's step of one token as one native loop, for one row in float32 on a processor."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...kernels._native import takes_native
from ...layers import TokenGate
from .decoder import Decoder
from .decoder_parts import blocks_of, gates_of, matrices_and_norms, source_of
from .memory import Memory, keys_and_values


def reads_natively(model: Decoder) -> bool:
    """Return whether native code reads a model with known parts only: in float32, on a processor."""
    parameters = list(model.parameters())
    return all(parameter.dtype == torch.float32 for parameter in parameters) and takes_native(*parameters)


class NativeReader:
    """Continues where a model's memories stand, one token at a time.

    Args:
        model: of which `has_known_parts_only` and `reads_natively` hold; its weights are read where they lie.
        memories: of each attending module, with one row.
        length: how many tokens they hold.
    """

    def __init__(self, model: Decoder, memories: Mapping[nn.Module, Memory], length: int) -> None:
        from ...kernels.native import decode as decode_loop

        self._loop, self._model = decode_loop, model
        source = source_of(model)
        self._shared, self._blocks = shared_table(model, source), block_table(model)
        modules: list[nn.Module | None] = []
        for block in blocks_of(model):
            gates = [None if gate is None else gate.layer for gate in gates_of(block)]
            modules += [block.attention, *gates]
        config = model.config
        places = len(modules) + 1
        self._keys, self._values = np.empty((2, places, config.width, config.context), np.float32)
        for place, module in enumerate([*modules, source]):
            if module is not None:
                both = keys_and_values(memories[module], length).numpy()
                self._keys[place, :, :length], self._values[place, :, :length] = both

    def read(self, tokens: list[int], past: int) -> Tensor:
        """Return the logits after the last of some more tokens.

        Args:
            tokens: their ids.
            past: how many were read before.

        Shape:
            result: (1, vocabulary).
        """
        logits = torch.empty(1, self._model.vocabulary_size)
        for position, token in enumerate(tokens, past):
            self._loop.read_token(
                self._shared, self._blocks, token, position, self._keys, self._values, logits.numpy()[0]
            )
        return logits


def address(tensor: Tensor | None) -> int:
    """Return where a tensor lies; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def addresses(module: nn.Linear | nn.LayerNorm) -> tuple[int, int]:
    """Return where a module's weight and its bias lie."""
    return address(module.weight), address(module.bias)


def shared_table(model: Decoder, source: Any) -> np.ndarray:
    """Return the native loop's table of what is there once."""
    embedding = model.embedding
    row = [address(embedding.token.weight), address(embedding.position.weight), *addresses(model.norm)]
    if source is None:
        return np.array([*row, 0, 0, 0, 0, 0], np.int64)
    return np.array([*row, *addresses(source.qkv), *addresses(source.projection), source.heads], np.int64)


def block_table(model: Decoder) -> np.ndarray:
    """Return the native loop's table of the blocks."""
    rows = []
    for block in blocks_of(model):
        row = [number for module in matrices_and_norms(block) for number in addresses(module)]
        row.append(block.attention.heads)
        rows.append(row + [number for gate in gates_of(block) for number in gate_columns(gate)])
    return np.array(rows, np.int64)


def gate_columns(gate: TokenGate | None) -> list[int]:
    """Return the part of a block's row that is about one learned mask."""
    if gate is None:
        return [0, 0, 0, 0, 0]
    return [*addresses(gate.qkv), address(gate.shift), gate.heads, int(gate.source is not None)]
