"""Products of a matrix and one vector that skip what a mask drops, for decoding one token at a time.

A row lies in one piece of memory, so a row that is left out is memory that is not read, and so is a part of
each row that is longer than what a cache reads at once. Reading the weights is most of such a product.
"""

import torch
from torch import Tensor

from ._native import takes_native


def kept_rows(weight: Tensor, x: Tensor, kept: Tensor) -> Tensor:
    """Return the elements of ``weight x`` that a mask keeps, and 0 for the others.

    Formula: ``y_i = kept_i sum_j weight_ij x_j``; the rows of dropped outputs are not read.

    Args:
        weight: a matrix.
        x: a vector.
        kept: bool, which elements of the result are wanted.

    Shape:
        weight: (outputs, inputs); x: (inputs,); kept, result: (outputs,).
    """
    if skips_natively(weight, x, kept):
        from .native.row_skipping import kept_rows as native

        y = x.new_empty(weight.shape[0])
        native(weight.detach().numpy(), x.detach().numpy(), kept.numpy(), y.numpy())
        return y
    rows = kept.nonzero()[:, 0]
    return x.new_zeros(weight.shape[0]).index_copy(0, rows, weight.index_select(0, rows) @ x)


def kept_columns(weight: Tensor, x: Tensor, kept: Tensor) -> Tensor:
    """Return ``weight x`` where a mask drops blocks of the elements of ``x``.

    Formula: ``y_i = sum_b kept_b sum_j weight_ij x_j`` over the elements j of block b; the columns of dropped
    blocks are not read.

    Args:
        weight: a matrix.
        x: a vector.
        kept: bool, which blocks of the vector count; they are equally long.

    Shape:
        weight: (outputs, inputs); x: (inputs,); kept: (blocks,); result: (outputs,).
    """
    if skips_natively(weight, x, kept):
        from .native.row_skipping import kept_columns as native

        y = x.new_empty(weight.shape[0])
        native(weight.detach().numpy(), x.detach().numpy(), kept.numpy(), y.numpy())
        return y
    columns = kept.repeat_interleave(len(x) // len(kept)).nonzero()[:, 0]
    return weight.index_select(1, columns) @ x.index_select(0, columns)


def skips_natively(weight: Tensor, x: Tensor, kept: Tensor) -> bool:
    """Return whether native code computes the product: in float32, and where no gradient is wanted."""
    wants_gradient = torch.is_grad_enabled() and (weight.requires_grad or x.requires_grad)
    return (
        not wants_gradient
        and weight.dtype == x.dtype == torch.float32
        and takes_native(weight, x)
        and kept.device.type == "cpu"
        and kept.is_contiguous()
    )
