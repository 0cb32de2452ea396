"""Output layer and cross-entropy in chunks of tokens, the gradient made in the forward.

The logits of all tokens never exist at once: a fresh buffer for them costs as much time as the products.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._native import is_watched
from .aligned import aligned_vocabulary
from .linear import linear, working_dtype

# Logits of one chunk: on a processor what its last cache holds, 26 MB in float32; elsewhere 256 MB.
PROCESSOR_LOGITS, DEVICE_LOGITS = 6_500_000, 64_000_000


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of the logits ``x weight^T``, in nats.

    Formula, with ``p = softmax(x weight^T)`` of n rows and ``e`` the one-hot targets::

        loss = -mean(log p[target])
        gradient of x = (p - e) weight / n,  gradient of weight = (p - e)^T x / n

    PyTorch 2.13's ``F.linear_cross_entropy`` goes by chunks too, but on a processor its products do not go
    through oneDNN, and under bfloat16 they stay in float32.

    Args:
        x: what the output layer reads.
        weight: of the output layer.
        targets: the index of the right class of each row.

    Shape:
        x: (..., width); weight: (classes, width); targets: (...); result: (), at least float32.
    """
    if is_watched():
        logits = F.linear(x, weight).flatten(0, -2)
        return F.cross_entropy(logits.to(at_least_float32(logits.dtype)), targets.flatten())
    return LinearCrossEntropy.apply(x, weight, targets, working_dtype(x), torch.is_grad_enabled())


class LinearCrossEntropy(torch.autograd.Function):
    """``linear_cross_entropy`` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, gradients: bool
    ) -> Tensor:
        needs_x, needs_weight = (gradients and needed for needed in ctx.needs_input_grad[:2])
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        # As many rows as a chunk holds.
        held = DEVICE_LOGITS if on_gpu(x) else PROCESSOR_LOGITS
        classes, size = len(weight), max(1, held // len(weight))
        wide = weight.to(dtype)
        loss, of_x, of_weight = loss_and_gradients(
            rows,
            aligned_vocabulary(wide) if on_gpu(x) else wide,
            targets.flatten(),
            classes,
            size,
            needs_x,
            needs_weight,
        )
        ctx.save_for_backward(
            of_x.to(x.dtype).view(x.shape) if needs_x else None,
            of_weight[:, :classes].t().to(weight.dtype).contiguous() if needs_weight else None,
        )
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        scaled = (None if of is None else of * gradient.to(of.dtype) for of in ctx.saved_tensors)
        return *scaled, None, None, None


def on_gpu(x: Tensor) -> bool:
    """Return whether the products run on a GPU."""
    return x.is_cuda


def loss_and_gradients(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    classes: int,
    size: int,
    needs_x: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean loss, the gradient of ``x`` and the transposed one of ``weight``, where needed.

    Args:
        x, weight, targets: as of ``linear_cross_entropy``, in the dtype of the products.
        classes: how many; further rows of the weight only fill it up.
        size: rows of a chunk.
        needs_x, needs_weight: whether a gradient is computed; what is not stays empty.

    Shape:
        x: (rows, width); weight: (classes or more, width); targets: (rows,).
    """
    count, wide = len(x), at_least_float32(x.dtype)
    total = torch.zeros((), dtype=wide, device=x.device)
    of_x = torch.empty_like(x if needs_x else x[:0], dtype=wide)
    # Transposed, so that oneDNN need not copy the probabilities of a chunk.
    of_weight = x.new_zeros((x.shape[1], len(weight)) if needs_weight else (0, 0), dtype=wide)
    for start in range(0, count, size):
        rows, target = x[start : start + size], targets[start : start + size, None]
        logits = linear(rows, weight).to(wide)
        logits[:, classes:] = -torch.inf
        p = logits.softmax(dim=-1)
        # The largest probability is never so small that its logarithm would be lost.
        total += (logits.amax(-1) - p.amax(-1).log() - logits.gather(-1, target)[:, 0]).sum()
        del logits
        if needs_x or needs_weight:
            p = p.scatter_add_(-1, target, p.new_full(target.shape, -1.0)).to(x.dtype)
        if needs_x:
            of_x[start : start + size] = linear(p, weight.t()) / count
        if needs_weight:
            of_weight += linear((rows / count).t(), p.t())
    return total / count, of_x, of_weight


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return a dtype in which sums over a vocabulary are exact enough."""
    return torch.promote_types(dtype, torch.float32)
