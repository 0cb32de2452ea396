"""Losses that reward agreement under noise: R-Drop.

Label smoothing is torch's own: ``torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)``.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError


def rdrop_loss(
    logits1: Tensor, logits2: Tensor, labels: Tensor, weight: float, *, ignore_index: int = -100
) -> Tensor:
    """Return the cross-entropy of two forwards plus their symmetric divergence.

    Formula: ``CE(logits1, labels) + CE(logits2, labels) + weight * (KL(P1 || P2) + KL(P2 || P1)) / 2``,
    each a mean over examples, or over tokens. The authors' code halves the cross-entropies instead: its
    weight is half of this one.

    Args:
        logits1, logits2: of two forwards of the same inputs under independent noise; see `two_passes`.
        labels: the true classes.
        weight: strength of the divergence; the paper's alpha, 1 to 5 there.
        ignore_index: label of what counts neither in the cross-entropy nor in the divergence.

    Shape:
        logits: (..., classes); labels: (...); result: scalar, in float32 at least.

    Raises:
        InputError: when the shapes do not fit.

    Paper: Liang et al. 2021, "R-Drop: regularized dropout for neural networks".
    """
    if logits1.shape != logits2.shape or logits1.shape[:-1] != labels.shape:
        raise InputError(
            f"rdrop_loss got logits of shapes {tuple(logits1.shape)} and {tuple(logits2.shape)} and labels "
            f"of shape {tuple(labels.shape)}; it needs (..., classes) twice and (...)."
        )
    dtype = torch.promote_types(logits1.dtype, torch.float32)
    # Finite even where a class is masked with -inf, whose 0 * inf would be NaN.
    log1, log2 = (
        torch.log_softmax(logits, dim=-1, dtype=dtype).clamp_min(torch.finfo(dtype).min)
        for logits in (logits1, logits2)
    )
    flat = labels.reshape(-1)
    cross_entropy1, cross_entropy2 = (
        F.nll_loss(logs.reshape(flat.numel(), -1), flat, ignore_index=ignore_index) for logs in (log1, log2)
    )
    # KL(P1 || P2) + KL(P2 || P1) in one sum.
    divergence = ((log1.exp() - log2.exp()) * (log1 - log2)).sum(dim=-1)
    counted = labels != ignore_index
    mean_divergence = torch.where(counted, divergence, 0.0).sum() / counted.sum()
    return cross_entropy1 + cross_entropy2 + weight * mean_divergence / 2


def two_passes(
    model: nn.Module, inputs: Tensor | Mapping[str, Any], *, doubled: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the logits of two forwards of the same inputs under independent noise, for `rdrop_loss`.

    Args:
        model: returns logits, or something with ``.logits``.
        inputs: one tensor, or keyword arguments, best without labels: the model's own loss is not used.
        doubled: whether to make one forward of the batch twice over, which is what the paper does and is
            faster for small batches. Noise that a whole batch shares, such as a dropped layer or mixed
            weights, is then the same in both halves; layer penalties see both halves, and otherwise only
            the second forward.

    Raises:
        InputError: when ``doubled`` and the inputs' first dimensions differ.
    """
    if not doubled:
        return logits_of(model, inputs), logits_of(model, inputs)
    sizes = {tensor.shape[0] for tensor in batched(inputs)}
    if len(sizes) != 1:
        raise InputError(
            f"The inputs have {sorted(sizes)} as first dimensions, so it is not clear what the batch is; use "
            "two_passes(..., doubled=False)."
        )

    def twice(value: Any) -> Any:
        return torch.cat([value, value]) if isinstance(value, Tensor) and value.ndim else value

    mapped = isinstance(inputs, Mapping)
    given = {name: twice(value) for name, value in inputs.items()} if mapped else twice(inputs)
    first, second = logits_of(model, given).chunk(2)
    return first, second


def logits_of(model: nn.Module, inputs: Tensor | Mapping[str, Any]) -> Tensor:
    """Return what a model gives for one tensor, or keyword arguments, or the ``.logits`` of that."""
    output = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    return output if isinstance(output, Tensor) else output.logits


def batched(inputs: Tensor | Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors among the inputs that have a dimension for the batch."""
    given = inputs.values() if isinstance(inputs, Mapping) else (inputs,)
    return [value for value in given if isinstance(value, Tensor) and value.ndim]
