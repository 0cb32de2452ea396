"""A decoder's step of one token as one native loop, where nothing in the model asks for more."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from .. import layers
from .._surgery import beside_output, on_branch, on_input, on_output
from ..kernels._native import takes_native
from ..kernels.linear import FastLinear
from ..kernels.linear import FastLinear
from ..layers.precomputed import MaskEmbedding
from .decoder import MLP, Attention, Block, Decoder, Embedding

PLAIN = (
    Decoder,
    Embedding,
    nn.Embedding,
    nn.ModuleList,
    Block,
    Attention,
    MLP,
    nn.LayerNorm,
    nn.Linear,
    FastLinear,
    FastLinear,
    nn.GELU,
)
# They do nothing in evaluation.
SILENT = (
    layers.AlphaDropout,
    layers.ConcreteDropout,
    layers.DropHead,
    layers.DropKey,
    layers.DropPath,
    layers.Dropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.ImportanceDropout,
    layers.LayerDrop,
    layers.TokenDropout,
)
LEARNED = (layers.LearnedDropout, layers.PrecomputedLearnedDropout)
HOOKS = (beside_output, on_branch, on_input, on_output)


def reads_natively(model: nn.Module) -> bool:
    """Say whether `NativeReader` computes what the model does now.

    It does in evaluation on a processor in float32, when the model is the project's decoder with no hooks but
    those of `regularize_`, and no layer acts in evaluation but learned masks by threshold on the output of
    the attention or the MLP.
    """
    modules = list(model.modules())
    gates = [gate for block in getattr(model, "blocks", ()) for gate in gates_of(block) if gate is not None]
    sources = {id(gate._source[0]) for gate in gates if isinstance(gate, layers.PrecomputedLearnedDropout)}
    return (
        type(model) is Decoder
        and all(known(module) for module in modules)
        and sum(isinstance(module, LEARNED) for module in modules) == len(gates)
        and sum(isinstance(module, MaskEmbedding) for module in modules) == len(sources) <= 1
        and not torch.is_autocast_enabled("cpu")
        and all(parameter.dtype == torch.float32 for parameter in model.parameters())
        and takes_native(*model.parameters())
    )


def known(module: nn.Module) -> bool:
    """Say whether a module is one whose work in evaluation the native loop does."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    if module.training or "forward" in vars(module) or module._compiled_call_impl is not None:
        return False
    if not all(isinstance(hook, partial) and hook.func in HOOKS for hook in hooks):
        return False
    match module:
        case nn.LayerNorm():
            return type(module) is nn.LayerNorm and module.eps == 1e-5
        case nn.GELU():
            return type(module) is nn.GELU and module.approximate == "none"
        case layers.LearnedDropout():
            settings = (module.eval_mask, module.causal, module.observer)
            return type(module) in LEARNED and settings == ("threshold", True, None)
        case MaskEmbedding():
            return type(module) is MaskEmbedding and module.causal
    return type(module) in PLAIN + SILENT


def gates_of(block: Any) -> tuple[layers.LearnedDropout | None, layers.LearnedDropout | None]:
    """Return the learned masks on the output of a block's attention and of its MLP."""
    found = (
        getattr(block.attention, "attention_output_dropout", None),
        getattr(block.mlp, "mlp_output_dropout", None),
    )
    first, second = (layer if isinstance(layer, LEARNED) else None for layer in found)
    return first, second


class NativeReader:
    """Continues where a cache stands, one token at a time.

    Args:
        model: of which `reads_natively` holds; its weights are read where they lie.
        remembered: keys and values of each attending module.

    Shape:
        remembered: each (1, heads, tokens, width of a head).
    """

    def __init__(self, model: Decoder, remembered: Mapping[nn.Module, tuple[Tensor, Tensor]]) -> None:
        from ..kernels import decode_native

        self._loop, self._model = decode_native, model
        source = next((module for module in model.modules() if isinstance(module, MaskEmbedding)), None)
        self._shared, self._blocks = shared_table(model, source), block_table(model)
        modules: list[nn.Module | None] = []
        for block in cast(Iterable[Block], model.blocks):
            modules += [block.attention, *gates_of(block)]
        config = model.config
        self._keys, self._values = np.empty((2, len(modules) + 1, config.width, config.context), np.float32)
        for place, module in enumerate([*modules, source]):
            if module is not None:
                for ours, theirs in zip((self._keys, self._values), remembered[module], strict=True):
                    ours[place, :, : theirs.shape[2]] = theirs[0].transpose(1, 2).flatten(0, 1).numpy()

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


def shared_table(model: Decoder, source: MaskEmbedding | None) -> np.ndarray:
    """Return the native loop's table of what is there once."""
    embedding = model.embedding
    row = [address(embedding.token.weight), address(embedding.position.weight), *addresses(model.norm)]
    if source is None:
        return np.array([*row, 0, 0, 0, 0, 0], np.int64)
    return np.array([*row, *addresses(source.qkv), *addresses(source.projection), source.heads], np.int64)


def block_table(model: Decoder) -> np.ndarray:
    """Return the native loop's table of the blocks."""
    rows = []
    for block in cast(Iterable[Block], model.blocks):
        attention, mlp = block.attention, block.mlp
        modules = block.attention_norm, attention.qkv, attention.projection
        modules += block.mlp_norm, mlp.expand, mlp.projection
        row = [number for module in modules for number in addresses(module)] + [attention.heads]
        for gate in gates_of(block):
            row += gate_columns(gate)
        rows.append(row)
    return np.array(rows, np.int64)


def gate_columns(gate: layers.LearnedDropout | None) -> list[int]:
    """Return the part of a block's row that is about one learned mask."""
    if gate is None:
        return [0, 0, 0, 0, 0]
    early = isinstance(gate, layers.PrecomputedLearnedDropout)
    return [*addresses(gate.qkv), address(gate.shift), gate.heads, int(early)]
