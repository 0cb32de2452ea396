"""The feed-forward part of PyTorch's own transformer layers, which is no module there, made one."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

# The name of the part, as the one of a child.
NAME = "mlp"
PRODUCTS = ("linear1", "linear2")
LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def has_feed_forward(module: nn.Module) -> bool:
    """Return whether a module is a layer of PyTorch's own that computes its two products as PyTorch does."""
    if not isinstance(module, LAYERS):
        return False
    own = "_ff_block" in vars(module) or type(module)._ff_block not in [kind._ff_block for kind in LAYERS]
    return not own and all(hasattr(module, name) for name in PRODUCTS)


def feed_forward_parts(model: nn.Module) -> Iterator[str]:
    """Yield the paths that the feed-forward parts of a model would have."""
    for path, module in model.named_modules():
        if has_feed_forward(module):
            yield f"{path}.{NAME}" if path else NAME


def layer_around(model: nn.Module, path: str) -> Any:
    """Return the layer whose feed-forward part a path names; None for any other path."""
    outer, _, name = path.rpartition(".")
    layer = model.get_submodule(outer)
    return layer if name == NAME and has_feed_forward(layer) else None


def put_feed_forward(model: nn.Module, layer: Any, part: Any) -> Callable[[], None]:
    """Let a module do the work of the feed-forward part of a model's layer, as its child ``mlp``.

    The layer's dropouts stay at work: the one of hidden units comes behind the part's ``activation``.

    Returns:
        what puts the two products back in their places.
    """
    before = dict(layer._modules)
    for name in PRODUCTS:
        delattr(layer, name)
    part.activation = nn.Sequential(part.activation, layer.dropout)
    layer.add_module(NAME, part)
    layer._ff_block = partial(through_part, layer)
    # In evaluation some layers compute both products themselves, and the stack around them looks for them.
    fused: list[tuple[nn.Module, str]] = [
        (stack, "use_nested_tensor") for stack in stacks_around(model, layer)
    ]
    if isinstance(layer, nn.TransformerEncoderLayer):
        fused.append((layer, "activation_relu_or_gelu"))
    kept = [(owner, name, getattr(owner, name)) for owner, name in fused]
    for owner, name in fused:
        setattr(owner, name, False)
    return partial(put_products_back, layer, before, kept)


def stacks_around(model: nn.Module, layer: nn.Module) -> list[nn.TransformerEncoder]:
    """Return the encoders of a model that have a layer."""
    stacks = [part for part in model.modules() if isinstance(part, nn.TransformerEncoder)]
    return [stack for stack in stacks if layer in list(stack.layers)]


def through_part(layer: Any, x: Tensor) -> Tensor:
    """Return what a layer adds behind its attention, computed by its child."""
    last = layer.dropout3 if isinstance(layer, nn.TransformerDecoderLayer) else layer.dropout2
    return last(layer.mlp(x))


def put_products_back(
    layer: Any, before: dict[str, nn.Module | None], kept: list[tuple[Any, str, Any]]
) -> None:
    """Undo `put_feed_forward`; what came to the layer since stays."""
    delattr(layer, NAME)
    del layer._ff_block
    for owner, name, value in kept:
        setattr(owner, name, value)
    since = dict(layer._modules)
    layer._modules.clear()
    layer._modules.update(before | since)
