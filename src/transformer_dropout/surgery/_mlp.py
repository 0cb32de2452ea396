"""Plain MLPs, nothing but two products and an activation, and how a layer comes to compute one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.block_products import Product, TwoProducts
from ..kernels.linear import fast_forward, is_conv1d, is_fast, is_fast_forward, is_plain_linear, linear
from ..sites import Site

# By package and class: the first product, the activation, the second product. Between these the code of the
# class does nothing but drop, at a rate that its site sets to 0.
PLAIN = {
    "transformer_dropout.MLP": ("expand", "activation", "projection"),
    **dict.fromkeys(
        ("torch.TransformerEncoderLayer", "torch.TransformerDecoderLayer"),
        ("linear1", "activation", "linear2"),
    ),
    "transformers.GPT2MLP": ("c_fc", "act", "c_proj"),
    "transformers.GPTJMLP": ("fc_in", "act", "fc_out"),
    "transformers.GPTNeoXMLP": ("dense_h_to_4h", "act", "dense_4h_to_h"),
    "transformers.PhiMLP": ("fc1", "activation_fn", "fc2"),
    "transformers.Starcoder2MLP": ("c_fc", "act", "c_proj"),
    "transformers.NemotronMLP": ("up_proj", "act_fn", "down_proj"),
    "transformers.MptMLP": ("up_proj", "act", "down_proj"),
    **dict.fromkeys(
        (
            "transformers.OPTDecoderLayer",
            "transformers.BartEncoderLayer",
            "transformers.BartDecoderLayer",
        ),
        ("fc1", "activation_fn", "fc2"),
    ),
    **dict.fromkeys(
        (
            "transformers.BertLayer",
            "transformers.RobertaLayer",
            "transformers.ElectraLayer",
            "transformers.DebertaV2Layer",
        ),
        ("intermediate.dense", "intermediate.intermediate_act_fn", "output.dense"),
    ),
    "transformers.AlbertLayer": ("ffn", "activation", "ffn_output"),
    "transformers.FFN": ("lin1", "activation", "lin2"),
}


@dataclass(frozen=True)
class PlainMLP:
    """The parts of a plain MLP.

    Attributes:
        holder: the module inside which the parts are found.
        activation_path: of the activation in the holder, a module or a function.
        first, second: its products.
        width: channels of its input.
    """

    holder: nn.Module
    activation_path: str
    first: nn.Module
    second: nn.Module
    width: int


def plain_mlp(model: nn.Module, site: Site) -> PlainMLP | None:
    """Return the plain MLP whose hidden units a site is; None where there is none, or it was changed."""
    if site.kind != "mlp_hidden":
        return None
    path = site.path
    while path:
        holder = model.get_submodule(path)
        paths = PLAIN.get(f"{type(holder).__module__.partition('.')[0]}.{type(holder).__name__}")
        # Experts may have taken the place of the products.
        if paths is not None and all(hasattr(holder, paths[end].partition(".")[0]) for end in (0, 2)):
            first, second = holder.get_submodule(paths[0]), holder.get_submodule(paths[2])
            inner, outer = sizes(first), sizes(second)
            if inner is None or outer is None or not inner[1] == outer[0] == site.width:
                return None
            return PlainMLP(holder, paths[1], first, second, inner[0])
        path = path.rpartition(".")[0]
    return None


def sizes(module: nn.Module) -> tuple[int, int] | None:
    """Return the channels that a linear layer takes and gives; None for a LoRA layer or anything else."""
    own = "forward" in vars(module) and not is_fast_forward(module.forward)
    if own or not is_plain_linear(module):
        return None
    outputs, inputs = product_of(module).weight.shape
    return inputs, outputs


def product_of(module: Any) -> Product:
    """Return weight and bias of a linear layer."""
    weight = module.weight.t() if is_conv1d(module) else module.weight
    return Product(weight, module.bias, linear if is_fast(module) else F.linear)


def detours(mlp: PlainMLP, place: nn.Module, name: str) -> Iterator[tuple[Any, str, Callable]]:
    """Yield what to set on which object so that a layer does the work of a plain MLP.

    The first product and the activation pass on what they are given, so that the MLP's input comes to the
    second, in whose place the layer computes all three.

    Args:
        mlp: the MLP.
        place: the module that has the layer as a child.
        name: of that child.
    """
    path, _, attribute = mlp.activation_path.rpartition(".")
    owner = mlp.holder.get_submodule(path)
    activation = getattr(owner, attribute)
    yield mlp.first, "forward", passed_on
    if isinstance(activation, nn.Module):
        yield activation, "forward", passed_on
        activation = partial(as_its_class_does, activation)
    else:
        yield owner, attribute, passed_on
    yield mlp.second, "forward", partial(through_layer, place, name, mlp.first, activation, mlp.second)


def passed_on(x: Tensor) -> Tensor:
    """Return the argument."""
    return x


def as_its_class_does(module: nn.Module, x: Tensor) -> Tensor:
    """Call the forward of a module's class, whatever stands in its place."""
    return type(module).forward(module, x)


def through_layer(
    place: nn.Module, name: str, first: nn.Module, activation: Any, second: nn.Module, x: Tensor
) -> Tensor:
    """Return an MLP's result, computed by the layer that is a child of a module."""
    return getattr(place, name)(x, TwoProducts(product_of(first), activation, product_of(second)))


def end_detour(owner: Any, name: str, before: Any) -> None:
    """Put back what stood on an object, None for nothing; `speed_up_` may have come or gone meanwhile."""
    if before is None or is_fast_forward(before):
        before = partial(fast_forward, owner) if isinstance(owner, nn.Module) and is_fast(owner) else None
    if before is None:
        delattr(owner, name)
    else:
        setattr(owner, name, before)


def is_detour(forward: Any) -> bool:
    """Return whether a forward is one of `detours`."""
    return forward is passed_on or (isinstance(forward, partial) and forward.func is through_layer)


def hook_without_effect(module: nn.Module, arguments: tuple, output: Any) -> None:
    """Forward hook that does nothing, for a module whose owner takes a fused path unless there is a hook."""
