"""Whether a decoder is made only of parts whose work in evaluation is known, and which parts those are.

Then a step of one token need not go through its modules, with their hooks and calls.
"""

from functools import partial
from typing import cast

import torch
from torch import nn

from ...kernels.compiled_hooks import passes_on
from ...kernels.linear import is_fast_forward
from ...kernels.torch_internals import hooks_of, is_compiled
from ...layers import DropoutLayer, TokenGate
from ...surgery._apply import beside_output, on_branch, on_input, on_output
from ...surgery._first_forward import ended, note
from .decoder import MLP, Attention, Block, Decoder, Embedding

OWN = (Decoder, Embedding, Block, Attention, MLP)
PLAIN = (nn.Embedding, nn.ModuleList, nn.Linear)
HOOKS = (beside_output, ended, note, on_branch, on_input, on_output)
METHODS = {"forward", "features", "gate", "keep_probability", "mask", "mask_input"}


def has_known_parts_only(model: nn.Module) -> bool:
    """Return whether all that a model does now is known.

    It is in evaluation, without autocast, for the project's decoder with no hooks but those of `regularize_`,
    when no layer acts but learned masks by threshold on the output of the attention or the MLP. Those of them
    that are computed from the embeddings share one attention.
    """
    if type(model) is not Decoder:
        return False
    gates = [gate for block in blocks_of(model) for gate in gates_of(block) if gate is not None]
    sources = {gate.source for gate in gates if gate.source is not None}
    gated = {gate.layer for gate in gates}
    return (
        all(is_known_part(module, gated | sources) for module in model.modules())
        and len(sources) <= 1
        and not torch.is_autocast_enabled(model.embedding.token.weight.device.type)
    )


def is_known_part(module: nn.Module, gated: set[nn.Module]) -> bool:
    """Return whether the work of one module in evaluation is known.

    Args:
        module: a module of the decoder.
        gated: the learned masks that the decoder computes by itself, and what they share.
    """
    own = {name for name, value in vars(module).items() if not (passes_on(value) or is_fast_forward(value))}
    if module.training or METHODS & own or is_compiled(module):
        return False
    if not all(isinstance(hook, partial) and hook.func in HOOKS for hook in hooks_of(module)):
        return False
    match module:
        case nn.LayerNorm():
            return type(module) is nn.LayerNorm and module.eps == 1e-5
        case nn.GELU():
            return type(module) is nn.GELU and module.approximate == "none"
        case DropoutLayer():
            return module.silent_in_evaluation or module in gated
    return type(module) in OWN + PLAIN or module in gated


def blocks_of(model: Decoder) -> list[Block]:
    """Return a decoder's blocks."""
    return cast(list[Block], list(model.blocks))


def matrices_and_norms(block: Block) -> list[nn.Linear | nn.LayerNorm]:
    """Return the modules of a block that hold its own weights, in the order in which they act."""
    attention, mlp = block.attention, block.mlp
    first = [block.attention_norm, attention.qkv, attention.projection]
    return [*first, block.mlp_norm, mlp.expand, mlp.projection]


def gates_of(block: Block) -> tuple[TokenGate | None, TokenGate | None]:
    """Return the learned masks on the output of a block's attention and of its MLP."""
    found = (
        getattr(block.attention, "attention_output_dropout", None),
        getattr(block.mlp, "mlp_output_dropout", None),
    )
    first, second = (layer.token_gate() if isinstance(layer, DropoutLayer) else None for layer in found)
    return first, second


def source_of(model: Decoder) -> nn.Module | None:
    """Return the attention over the embeddings that masks are computed from."""
    gates = [gate for block in blocks_of(model) for gate in gates_of(block)]
    return next((gate.source for gate in gates if gate is not None and gate.source is not None), None)
