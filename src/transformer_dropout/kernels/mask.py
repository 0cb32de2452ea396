"""LearnedDropout's mask in one pass: cosine, draw, product and penalty, with a backward written by hand."""

from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from . import random
from ._native import is_unwrapped, takes_native, takes_triton

SmoothPenalty = Literal["squared", "linear"]


def learned_mask(
    x: Tensor,
    gate: Tensor,
    shift: Tensor,
    *,
    key: Tensor | None = None,
    penalty: SmoothPenalty | None = None,
    padding_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Multiply by a 0/1 mask whose probability of keeping is a cosine, and penalise that probability.

    Formula, with ``u = gate + shift``::

        M = 0.5 cos(u) + 0.5 = cos^2(u / 2)
        y = x * 1[r < M],  r ~ U[0, 1) of the key;  without a key  y = x * 1[M >= 0.5]
        gradient, straight through to M:  dL/du = (dL/dy * x + dL/dpenalty * dpenalty/dM) * -sin(u) / 2

    Backward reads ``x`` and ``gate``, which a product and attention keep anyway, and one byte per element,
    or one bit in native code. All else is computed again.

    Args:
        x: what is masked.
        gate: what attention mixed.
        shift: the shift of each channel.
        key: of ``random.draw_key``, to draw the mask; None for the threshold.
        penalty: "squared" for ``mean(M^2 / 2)``, "linear" for ``mean(M)``.
        padding_mask: true at real tokens, over which the penalty's mean goes.

    Shape:
        x, gate: (..., width); shift: (width,); padding_mask: (...); the penalty: (), at least float32.

    Paper: Yan 2024, "Learned Dropout".
    """
    if torch.is_grad_enabled() and (x.requires_grad or gate.requires_grad or shift.requires_grad):
        return LearnedMask.apply(x, gate, shift, key, penalty, padding_mask)
    weight, count = weights(gate, padding_mask)
    run = masked if (native := native_loops(x, gate, shift)) is None else native.masked
    y, _, total = run(x, gate, shift, key, penalty, weight, keep=False)
    return y, None if total is None else total / count


def takes_learned_mask(*tensors: Tensor) -> bool:
    """Return whether ``learned_mask`` takes these: eager code, plain tensors, reverse-mode gradients."""
    return not torch.compiler.is_compiling() and all(
        is_unwrapped(tensor) and forward_ad.unpack_dual(tensor).tangent is None for tensor in tensors
    )


class LearnedMask(torch.autograd.Function):
    """``learned_mask`` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gate: Tensor,
        shift: Tensor,
        key: Tensor | None,
        penalty: SmoothPenalty | None,
        padding_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        weight, count = weights(gate, padding_mask)
        ctx.native, ctx.penalty = native_loops(x, gate, shift), penalty
        run = masked if ctx.native is None else ctx.native.masked
        y, kept, total = run(x, gate, shift, key, penalty, weight, keep=True)
        ctx.save_for_backward(x, gate, shift, kept, padding_mask)
        ctx.set_materialize_grads(False)
        return y, None if total is None else total / count

    @staticmethod
    @once_differentiable
    def backward(  # pyrefly: ignore[bad-override]
        ctx: Any, y_gradient: Tensor | None, penalty_gradient: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, gate, shift, kept, padding_mask = ctx.saved_tensors
        weight, count = weights(gate, padding_mask)
        scale = None if penalty_gradient is None else penalty_gradient / count
        dy = torch.zeros_like(x) if y_gradient is None else y_gradient.contiguous()
        run = gradients
        if ctx.native is not None and native_loops(dy) is ctx.native:
            run = ctx.native.gradients
        elif ctx.native is not None:
            kept = ctx.native.mask_of(kept, x, gate, shift)
        x_gradient, *others = run(dy, scale, x, gate, shift, kept, ctx.penalty, weight)
        return None if y_gradient is None else x_gradient, *others, None, None, None


def native_loops(*tensors: Tensor) -> ModuleType | None:
    """Return the module whose loops compute with these tensors, None for PyTorch's own operations."""
    if takes_native(*tensors):
        from .native import mask as native

        return native
    if takes_triton(*tensors):
        from . import mask_triton

        return mask_triton
    return None


def masked(
    x: Tensor,
    gate: Tensor,
    shift: Tensor,
    key: Tensor | None,
    penalty: SmoothPenalty | None,
    weight: Tensor | None,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the output, the mask as one byte per element, and the sum of the penalty."""
    width = x.shape[-1]
    rows, gates = (tensor.reshape(-1, width) for tensor in (x, gate))
    y = torch.empty_like(rows)
    kept = torch.empty(rows.shape, dtype=torch.bool, device=x.device) if keep else None
    parts, totals = chunks(rows), []
    made = None if key is None else random.steps(parts[0].stop * width, x.device)
    for part in parts:
        probability = (widened(gates[part]) + shift).cos_().mul_(0.5).add_(0.5)
        if penalty is not None:
            totals.append(penalty_sum(probability, penalty, None if weight is None else weight[part]))
        # The ceiling of a difference and not a comparison: just as exact, and NaN stays NaN.
        if key is None:
            mask = probability.add_(0.5).floor_()
        else:
            noise = random.uniform(key, probability.numel(), part.start * width, made)
            mask = probability.sub_(noise.view_as(probability)).ceil_()
        if kept is not None:
            kept[part] = mask
        torch.mul(rows[part], mask.to(x.dtype), out=y[part])
    return y.view(x.shape), kept, torch.stack(totals).sum() if totals else None


def gradients(
    y_gradient: Tensor,
    scale: Tensor | None,
    x: Tensor,
    gate: Tensor,
    shift: Tensor,
    kept: Tensor,
    penalty: SmoothPenalty | None,
    weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of ``x``, ``gate`` and ``shift``.

    With ``t = tan(u / 2)`` one function gives both parts: ``M = 1 / (1 + t^2)``, ``dM/du = -t M``.
    """
    ys, rows, gates = (tensor.reshape(-1, x.shape[-1]) for tensor in (y_gradient, x, gate))
    x_gradient, gate_gradient = torch.empty_like(ys), torch.empty_like(ys, dtype=gate.dtype)
    shift_gradient = []
    for part in chunks(ys):
        minus_tangent = (widened(gates[part]) + shift).mul_(-0.5).tan_()
        probability = torch.addcmul(minus_tangent.new_ones(()), minus_tangent, minus_tangent).reciprocal_()
        chain = ys[part].to(probability.dtype) * rows[part].to(probability.dtype)
        if scale is not None:
            rate = scale if weight is None else scale * weight[part, None]
            chain = torch.addcmul(chain, probability, rate) if penalty == "squared" else chain + rate
        shift_gradient.append(chain.mul_(minus_tangent).mul_(probability).sum(0))
        gate_gradient[part] = chain
        x_gradient[part].copy_(ys[part]).mul_(kept[part].view(torch.uint8).to(x.dtype))
    return (
        x_gradient.view(x.shape),
        gate_gradient.view(gate.shape),
        torch.stack(shift_gradient).sum(0).to(shift.dtype),
    )


def chunks(rows: Tensor) -> list[slice]:
    """Return the parts that the caches of all threads hold, the first the largest; elsewhere all rows."""
    held = random.CHUNK * torch.get_num_threads() // rows.shape[-1]
    step = max(1, held if rows.device.type == "cpu" else len(rows))
    return [slice(start, min(start + step, len(rows))) for start in range(0, max(1, len(rows)), step)]


def widened(gate: Tensor) -> Tensor:
    """Return the gate in at least float32, in which the mask is computed."""
    return gate.to(torch.promote_types(gate.dtype, torch.float32))


def weights(gate: Tensor, padding_mask: Tensor | None) -> tuple[Tensor | None, int | Tensor]:
    """Return a weight of 0 or 1 for each token, and how many elements the penalty's mean goes over."""
    if padding_mask is None:
        return None, gate.numel()
    weight = padding_mask.reshape(-1).to(torch.promote_types(gate.dtype, torch.float32))
    return weight, weight.sum() * gate.shape[-1]


def penalty_sum(probability: Tensor, penalty: SmoothPenalty, weight: Tensor | None) -> Tensor:
    """Return the sum over real tokens of ``M^2 / 2`` or ``M``."""
    real = probability if weight is None else probability * weight[:, None]
    if penalty == "linear":
        return real.sum()
    return probability.flatten().dot(real.flatten()) / 2
