"""GELU and the linear layer behind it as one operation that saves what enters, not what lies between."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules import module as module_hooks

from ._native import watched
from .linear import FastLinear, linear, weight_gradient, working_dtype


def gelu_linear(
    hidden: Tensor, weight: Tensor, bias: Tensor | None = None, *, approximate: str = "none"
) -> Tensor:
    """Return ``gelu(hidden) weight^T + bias``; the backward computes ``gelu(hidden)`` again.

    Without this both ``hidden`` and ``gelu(hidden)`` are kept, the two largest tensors of a block.

    Args:
        hidden: what the GELU acts on.
        weight, bias: of the linear layer.
        approximate: "none" or "tanh".

    Shape:
        hidden: (..., inputs); weight: (outputs, inputs); bias: (outputs,); result: (..., outputs).

    Paper: Hendrycks and Gimpel 2016, "Gaussian error linear units".
    """
    return GeluLinear.apply(hidden, weight, bias, approximate)


def linear_after(activation: nn.Module, layer: nn.Module, hidden: Tensor) -> Tensor:
    """Return ``layer(activation(hidden))``, as one operation where nothing looks at or acts between the two."""
    one = not watched() and bare(activation, nn.GELU) and bare(layer, nn.Linear, FastLinear)
    if not one:
        return layer(activation(hidden))
    return gelu_linear(hidden, layer.weight, layer.bias, approximate=activation.approximate)


def bare(module: nn.Module, *kinds: type) -> bool:
    """Say whether a module is exactly of one of these kinds and no hook hangs on it."""
    return type(module) in kinds and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
        or module_hooks._has_any_global_hook()
    )


class GeluLinear(torch.autograd.Function):
    """``gelu_linear`` with its gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.approximate, ctx.dtype = approximate, working_dtype(hidden)
        # Cast by hand: autocast would remember its copy of the weight, which has no gradient in here.
        active, weight = F.gelu(hidden, approximate=approximate).to(ctx.dtype), weight.to(ctx.dtype)
        return linear(active, weight, None if bias is None else bias.to(ctx.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias, _ = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        hidden_gradient = weight_change = bias_change = None
        if needs_weight:
            active = F.gelu(hidden, approximate=ctx.approximate).to(ctx.dtype)
            weight_change = weight_gradient(rows, active.reshape(-1, hidden.shape[-1])).to(weight.dtype)
        if needs_bias:
            bias_change = rows.sum(dim=0).to(weight.dtype)
        if needs_hidden:
            entering = linear(gradient, weight.to(ctx.dtype).t()).to(hidden.dtype)
            hidden_gradient = torch.ops.aten.gelu_backward(entering, hidden, approximate=ctx.approximate)
        return hidden_gradient, weight_change, bias_change, None
