"""Whether a decoder is made only of parts whose work in evaluation is known, and which parts those are.

Then a step of one token need not go through its modules, with their hooks and calls.
"""

from functools import partial
from typing import cast

import torch
from torch import nn

from ... import layers
from ...kernels.linear import FastLinear
from ...layers.precomputed import MaskEmbedding
from ...surgery._apply import beside_output, on_branch, on_input, on_output
from .decoder import MLP, Attention, Block, Decoder, Embedding

OWN = (Decoder, Embedding, Block, Attention, MLP)
PLAIN = (nn.Embedding, nn.ModuleList, nn.Linear, FastLinear)
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
METHODS = {"forward", "features", "gate", "keep_probability", "mask", "mask_input"}


def is_known(model: nn.Module) -> bool:
    """Say whether all that a model does now is known.

    It is in evaluation, without autocast, for the project's decoder with no hooks but those of `regularize_`,
    when no layer acts but learned masks by threshold on the output of the attention or the MLP. Those of them
    that are computed from the embeddings share one attention.
    """
    if type(model) is not Decoder or not all(known(module) for module in model.modules()):
        return False
    gates = [gate for block in blocks_of(model) for gate in gates_of(block) if gate is not None]
    sources = {id(gate._source[0]) for gate in gates if isinstance(gate, layers.PrecomputedLearnedDropout)}
    return (
        sum(isinstance(module, LEARNED) for module in model.modules()) == len(gates)
        and sum(isinstance(module, MaskEmbedding) for module in model.modules()) == len(sources) <= 1
        and not torch.is_autocast_enabled(model.embedding.token.weight.device.type)
    )


def known(module: nn.Module) -> bool:
    """Say whether the work of one module in evaluation is known."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    if module.training or METHODS & vars(module).keys() or module._compiled_call_impl is not None:
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
    return type(module) in OWN + PLAIN + SILENT


def blocks_of(model: Decoder) -> list[Block]:
    """Return a decoder's blocks."""
    return cast(list[Block], list(model.blocks))


def matrices_and_norms(block: Block) -> list[nn.Linear | nn.LayerNorm]:
    """Return the modules of a block that hold its own weights, in the order in which they act."""
    attention, mlp = block.attention, block.mlp
    first = [block.attention_norm, attention.qkv, attention.projection]
    return [*first, block.mlp_norm, mlp.expand, mlp.projection]


def gates_of(block: Block) -> tuple[layers.LearnedDropout | None, layers.LearnedDropout | None]:
    """Return the learned masks on the output of a block's attention and of its MLP."""
    found = (
        getattr(block.attention, "attention_output_dropout", None),
        getattr(block.mlp, "mlp_output_dropout", None),
    )
    first, second = (layer if isinstance(layer, LEARNED) else None for layer in found)
    return first, second


def source_of(model: Decoder) -> MaskEmbedding | None:
    """Return the attention over the embeddings that masks are computed from."""
    return next((module for module in model.modules() if isinstance(module, MaskEmbedding)), None)
