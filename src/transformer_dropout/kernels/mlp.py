"""Two linear layers with a GELU between them as one operation that keeps little for its backward."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ._native import is_watched
from .linear import is_fast_forward, linear, weight_gradient, working_dtype
from .torch_internals import has_any_hook

# Hidden units that are kept and not computed again, 2 MB in float32: so few cost more time than memory.
KEPT = 2**19


def mlp(x: Tensor, expand: nn.Module, activation: nn.Module, projection: nn.Module) -> Tensor:
    """Return ``projection(activation(expand(x)))``, as one operation where nothing acts in between.

    It does not where a module is not a plain linear layer or GELU, where a hook hangs on one (of
    ``regularize_`` on the activation, of an observer), and where operations are compiled or counted.

    Shape:
        x: (..., width); the result too.
    """
    linears = all(bare(layer, nn.Linear) for layer in (expand, projection))
    if is_watched() or not (linears and bare(activation, nn.GELU)):
        return projection(activation(expand(x)))
    layers = (expand.weight, expand.bias, projection.weight, projection.bias)
    return GeluMLP.apply(x, *layers, activation.approximate)


def bare(module: nn.Module, *kinds: type) -> bool:
    """Return whether a module is exactly of one of these kinds and no hook hangs on it."""
    forward = vars(module).get("forward")
    plain = forward is None or is_fast_forward(forward)
    return type(module) in kinds and plain and not has_any_hook(module)


class GeluMLP(torch.autograd.Function):
    """``gelu(x W_1^T + b_1) W_2^T + b_2``; the backward computes what lies between again.

    That is half of the products of its forward, and saves the two largest tensors of a block, each four
    times as wide as ``x``. Up to ``KEPT`` numbers of the first of them are kept, and the second is made anew.

    Paper: Hendrycks and Gimpel 2016, "Gaussian error linear units".
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        out_weight: Tensor,
        out_bias: Tensor | None,
        approximate: str,
    ) -> Tensor:
        ctx.approximate, ctx.dtype = approximate, working_dtype(x)
        # Cast by hand: autocast would remember its copies of the weights, which have no gradient in here.
        tensors = x, weight, bias, out_weight, out_bias
        x, weight, bias, out_weight, out_bias = cast(ctx.dtype, *tensors)
        hidden = linear(x, weight, bias)
        ctx.save_for_backward(*tensors, hidden if hidden.numel() <= KEPT else None)
        return linear(F.gelu(hidden, approximate=approximate), out_weight, out_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        *saved, hidden = ctx.saved_tensors
        x, weight, bias, out_weight, _ = cast(ctx.dtype, *saved)
        x, gradient = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        hidden = linear(x, weight, bias) if hidden is None else hidden.flatten(0, -2)
        active = F.gelu(hidden, approximate=ctx.approximate)
        of_out_weight = weight_gradient(gradient, active)
        of_active = linear(gradient, out_weight.t())
        of_hidden = torch.ops.aten.gelu_backward(of_active, hidden, approximate=ctx.approximate)
        of_x = linear(of_hidden, weight.t()).view(saved[0].shape)
        of_bias, of_out_bias = of_hidden.sum(dim=0), gradient.sum(dim=0)
        found = (of_x, weight_gradient(of_hidden, x), of_bias, of_out_weight, of_out_bias)
        needed = zip(found, saved, ctx.needs_input_grad, strict=False)
        return *(of.to(tensor.dtype) if needs else None for of, tensor, needs in needed), None


def cast(dtype: torch.dtype, *tensors: Tensor | None) -> tuple[Any, ...]:
    """Return tensors in a dtype; None stays None."""
    return tuple(tensor if tensor is None else tensor.to(dtype) for tensor in tensors)
