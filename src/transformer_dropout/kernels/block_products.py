"""The two products of an MLP where each block of hidden units is computed for some of the tokens only.

For each block the tokens that keep it are gathered, multiplied, and added back: the work of a block grows
with its tokens, and a block that no token keeps costs nothing. What is computed for a token does not depend
on the other tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._native import is_unwrapped
from .linear import working_dtype
from .row_skipping import kept_columns, kept_rows, skips_natively

# Gathering a row, adding its result back and starting its products take as long as so many more units do in
# float32, and as twice as many where products are twice as fast.
UNITS_OF_A_ROW = 64
# As long as it takes to copy a block's weights, so many rows are multiplied by them.
FEW_ROWS = 16


class Product(NamedTuple):
    """A linear layer.

    Attributes:
        weight: of shape (out, in), in any strides.
        bias: of shape (out,).
        multiply: what computes ``x weight^T + bias``: ``F.linear``, or a faster one like it.
    """

    weight: Tensor
    bias: Tensor | None = None
    multiply: Callable[..., Tensor] = F.linear

    def __call__(self, x: Tensor) -> Tensor:
        """Return the layer's result."""
        return self.multiply(x, self.weight, self.bias)


@dataclass(frozen=True)
class TwoProducts:
    """An MLP that is nothing but ``second(activation(first(x)))``.

    Attributes:
        first: width -> hidden units.
        activation: acts on each hidden unit alone.
        second: hidden units -> width.
    """

    first: Product
    activation: Callable[[Tensor], Tensor]
    second: Product


class BlockPart(NamedTuple):
    """One block: its rows among all, those that are kept, its units, and the tokens of these rows."""

    rows: slice
    kept: slice
    units: slice
    tokens: Tensor
    kept_tokens: Tensor


@dataclass(frozen=True)
class Grouped:
    """Pairs of a token and a block, block by block: first those that are kept, then those only looked at.

    Attributes:
        tokens, blocks: the pairs, each of shape (rows,).
        kept: how many pairs of each block are kept.
        probed: how many are looked at.
        block: units of a block.
    """

    tokens: Tensor
    blocks: Tensor
    kept: list[int]
    probed: list[int]
    block: int

    def parts(self) -> Iterator[BlockPart]:
        """Yield the blocks that have rows."""
        start = 0
        for number, (kept, probed) in enumerate(zip(self.kept, self.probed, strict=True)):
            middle, end = start + kept, start + kept + probed
            if end > start:
                units = slice(number * self.block, (number + 1) * self.block)
                tokens = self.tokens[start:end]
                yield BlockPart(slice(start, end), slice(start, middle), units, tokens, tokens[:kept])
            start = end


def group(kept: Tensor, probed: Tensor | None, block: int) -> Grouped:
    """Group pairs of a token and a block by block.

    Args:
        kept: true at the pairs of the mask.
        probed: true at other pairs that are to be looked at.
        block: units of a block.

    Shape:
        kept, probed: (tokens, blocks), bool.
    """
    chosen = kept.t() if probed is None else torch.cat([kept.t(), probed.t()], dim=1)
    blocks, tokens = chosen.nonzero().t().contiguous().unbind()
    looked_at = [0] * kept.shape[1] if probed is None else probed.sum(0).tolist()
    return Grouped(tokens % max(len(kept), 1), blocks, kept.sum(0).tolist(), looked_at, block)


def grouped_mlp(
    x: Tensor,
    mlp: TwoProducts,
    kept: Tensor,
    soft: Tensor,
    block: int,
    probed: Tensor | None = None,
) -> Tensor:
    """Return ``second(mask * activation(first(x)))`` without computing what the mask drops.

    Formula: ``y_t = c + sum_b kept[t, b] V_b activation(W_b x_t + a_b)``, with ``W_b`` the rows and ``V_b``
    the columns of the two weights that belong to block ``b``.

    Args:
        x: the input.
        mlp: the two products.
        kept: the mask.
        soft: what the mask's gradient passes straight through to, at kept and probed pairs; its value is not
            read.
        block: units of a block.
        probed: dropped pairs whose mask's gradient is wanted too. They cost two of the six products of a kept
            pair, and change nothing else.

    Shape:
        x, result: (tokens, width); kept, soft, probed: (tokens, blocks).
    """
    rows = group(kept, probed, block)
    hidden = mlp.activation(Expand.apply(x, *mlp.first, rows))
    second = mlp.second
    out = Project.apply(hidden, soft[rows.tokens, rows.blocks], second.weight, second.multiply, rows, len(x))
    return out if second.bias is None else out + second.bias


def reads_kept_only(x: Tensor, mlp: TwoProducts, kept: Tensor) -> bool:
    """Return whether `one_token_mlp` computes this input: one token, natively, without gradients."""
    return (
        x.numel() == x.shape[-1]
        and working_dtype(x) == x.dtype
        and all(skips_natively(product.weight, x, kept) for product in (mlp.first, mlp.second))
    )


def one_token_mlp(x: Tensor, mlp: TwoProducts, kept: Tensor, block: int) -> Tensor:
    """Return what `grouped_mlp` does for one token, without reading the weights of dropped blocks.

    Shape:
        x, result: (width,); kept: (blocks,).
    """
    first, second = mlp.first, mlp.second
    hidden = kept_rows(first.weight, x, kept.repeat_interleave(block))
    hidden = mlp.activation(hidden if first.bias is None else hidden + first.bias)
    out = kept_columns(second.weight, hidden, kept)
    return out if second.bias is None else out + second.bias


def can_group(*tensors: Tensor) -> bool:
    """Return whether pairs can be grouped: not in a compiled graph, whose shapes do not depend on values.

    Tensors without values, shards and transforms of functions cannot be either.
    """
    return not torch.compiler.is_compiling() and all(
        is_unwrapped(tensor) and tensor.device.type != "meta" for tensor in tensors
    )


def pays(share: float, block: int, dtype: torch.dtype) -> bool:
    """Return whether computing a share of the pairs takes less time than computing all in one product."""
    return share * (1 + UNITS_OF_A_ROW * max(1, 4 // dtype.itemsize) / block) < 1


class Expand(torch.autograd.Function):
    """The first product: ``W_b x_t + a_b`` for each pair of a token and a block.

    Only kept pairs are part of the gradient.

    Shape:
        x: (tokens, width); weight: (hidden, width); bias: (hidden,); result: (rows, block).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, multiply: Callable, rows: Grouped
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.multiply, ctx.rows = multiply, rows
        hidden = x.new_empty(len(rows.tokens), rows.block)
        for part in rows.parts():
            own = None if bias is None else bias[part.units]
            hidden[part.rows] = times(multiply, x.index_select(0, part.tokens), weight[part.units], own)
        return hidden

    @staticmethod
    @once_differentiable
    def backward(  # pyrefly: ignore[bad-override]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, gradient = ctx.rows, gradient.contiguous()
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        of_x = sums(x.shape, x) if wants_x else None
        of_weight = room_for(weight, rows) if wants_weight else None
        of_bias = weight.new_zeros(len(weight)) if wants_bias else None
        for part in rows.parts():
            own = gradient[part.kept]
            if of_x is not None:
                change = times(ctx.multiply, own, weight[part.units].t())
                of_x.index_add_(0, part.kept_tokens, change.to(of_x.dtype))
            if of_weight is not None:
                entering = x.index_select(0, part.kept_tokens)
                of_weight[part.units] = ctx.multiply(own.t(), entering.t())
            if of_bias is not None:
                torch.sum(own, 0, out=of_bias[part.units])
        return None if of_x is None else of_x.to(x.dtype), of_weight, of_bias, None, None


class Project(torch.autograd.Function):
    """The second product: the sum of ``V_b h`` over a token's kept pairs, and the mask's gradient at all.

    Formula: the gradient of a pair's mask is ``<V_b^T g_t, h>``, with ``g_t`` the gradient of the result.

    Shape:
        hidden: (rows, block); soft: (rows,); weight: (width, hidden); result: (tokens, width).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, soft: Tensor, weight: Tensor, multiply: Callable, rows: Grouped, tokens: int
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.multiply, ctx.rows, ctx.soft_dtype = multiply, rows, soft.dtype
        out = sums((tokens, len(weight)), hidden)
        for part in rows.parts():
            change = times(multiply, hidden[part.kept], weight[:, part.units])
            out.index_add_(0, part.kept_tokens, change.to(out.dtype))
        return out.to(hidden.dtype)

    @staticmethod
    @once_differentiable
    def backward(  # pyrefly: ignore[bad-override]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        rows, gradient = ctx.rows, gradient.contiguous()
        of_hidden = torch.empty_like(hidden)
        of_weight = room_for(weight, rows) if ctx.needs_input_grad[2] else None
        for part in rows.parts():
            own = gradient.index_select(0, part.tokens)
            of_hidden[part.rows] = times(ctx.multiply, own, weight[:, part.units].t())
            if of_weight is not None:
                leaving = own[: len(part.kept_tokens)]
                of_weight[:, part.units] = ctx.multiply(leaving.t(), hidden[part.kept].t())
        of_soft = dots(of_hidden, hidden, ctx.soft_dtype) if ctx.needs_input_grad[1] else None
        return of_hidden, of_soft, of_weight, None, None, None


def times(multiply: Callable, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x weight^T + bias``, where the weight may be a part of a larger one.

    Fast products fall back to a slow loop on such a part, so it is copied first; for a few rows that takes
    longer than the product.
    """
    if len(x) < FEW_ROWS:
        return F.linear(x, weight, bias)
    if multiply is not F.linear and not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()
    return multiply(x, weight, bias)


def room_for(weight: Tensor, rows: Grouped) -> Tensor:
    """Return room for a weight's gradient, zeros where a block has no pair that would fill its part."""
    return torch.empty_like(weight) if all(rows.kept) else torch.zeros_like(weight)


def sums(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return zeros to add up in: at least float32, since a token's blocks are added one by one."""
    return like.new_zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32))


def dots(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the inner products along the last dimension."""
    return (a * b).sum(-1, dtype=torch.promote_types(a.dtype, torch.float32)).to(dtype)
