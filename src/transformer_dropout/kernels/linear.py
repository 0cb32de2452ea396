"""Linear layers in float32 through oneDNN, which PyTorch carries and by itself uses for bfloat16 only.

On processors that are not Intel's the library that PyTorch takes for float32 by itself is the slower one.
Both are float32 throughout; they differ in the order of a sum. No global precision switch is touched.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._native import dense, is_watched
from .aligned import aligned_linear
from .torch_internals import onednn_product

# Products of fewer multiplications take less time than handing them over.
SMALL = 2_000_000


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x weight^T + bias``, in float32 on a processor through oneDNN, on a GPU in full tiles.

    Args:
        x: any tensor; other dtypes, devices and autocast take PyTorch's own path.
        weight: may be a transposed view.
        bias: added to each row.

    Shape:
        x: (..., inputs); weight: (outputs, inputs); bias: (outputs,); result: (..., outputs).
    """
    if x.is_cuda and not is_watched():
        return aligned_linear(x, weight, bias)
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if x.numel() * len(weight) < SMALL or not takes_onednn(*tensors):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return OneDnnProduct.apply(x, weight, bias)
    return product(x, weight, bias)


def takes_onednn(*tensors: Tensor) -> bool:
    """Return whether products of these run in oneDNN here.

    They do in eager mode, on ordinary float32 tensors in the memory of the processor, without autocast and
    where nobody counts operations, which would not know this one.
    """
    return (
        not is_watched()
        and torch.backends.mkldnn.is_available()
        and onednn_product() is not None
        and not torch.is_autocast_enabled("cpu")
        and all(dense(t) and t.dtype == torch.float32 and t.numel() > 0 for t in tensors)
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x weight^T + bias`` for tensors of which ``takes_onednn`` holds; it has no gradient."""
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        # For a part of a wider matrix oneDNN falls back to a much slower loop.
        weight = weight.contiguous()
    return onednn_product()(x, weight, bias, "none", [], "")


class OneDnnProduct(torch.autograd.Function):
    """``linear`` with its gradient, which is made of ``linear`` and so has one itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            linear(gradient, weight.t()) if needs_x else None,
            weight_gradient(rows, x.reshape(-1, x.shape[-1])) if needs_weight else None,
            rows.sum(dim=0) if needs_bias else None,
        )


def weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """Return ``gradient^T x``, the gradient of a weight.

    Shape:
        gradient: (rows, outputs); x: (rows, inputs); result: (outputs, inputs).
    """
    # oneDNN copies a transposed left factor, so that is to be the smaller one.
    if gradient.shape[-1] <= x.shape[-1]:
        return linear(gradient.t(), x.t())
    return linear(x.t(), gradient.t()).t()


def working_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that a product with ``x`` runs in: autocast's where that is on."""
    kind = x.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if autocast else x.dtype


# The attribute of a linear layer that computes through `linear`.
FAST = "computes_fast"


def fast_forward(layer: Any, input: Tensor) -> Tensor:
    """Return what a linear layer does, through ``linear``; `speed_up_` makes it the layer's forward."""
    return linear(input, layer.weight.t() if is_conv1d(layer) else layer.weight, layer.bias)


def is_fast(layer: nn.Module) -> bool:
    """Return whether `speed_up_` was here, whatever else stands in the place of the layer's forward now."""
    return FAST in vars(layer)


def is_plain_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer of PyTorch's or GPT-2's, and of no class made from one."""
    return type(module) is nn.Linear or is_conv1d(module)


def is_conv1d(module: Any) -> bool:
    """Return whether a module is GPT-2's linear layer, whose weight lies the other way round."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def is_fast_forward(forward: Any) -> bool:
    """Return whether an instance's forward is the one that `speed_up_` gives it."""
    return isinstance(forward, partial) and forward.func is fast_forward
