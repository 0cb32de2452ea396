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

from ._native import unwrapped

# Gathering a row, adding its result back and starting its products take as long as so many more units do.
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


class Part(NamedTuple):
    """One block: its rows among the gathered ones, its units, and the tokens of its rows."""

    rows: slice
    units: slice
    tokens: Tensor


@dataclass(frozen=True)
class Grouped:
    """Pairs of a token and a block, block by block and in each by token.

    Attributes:
        tokens, blocks: the pairs, each of shape (rows,).
        counts: how many rows each block has.
        block: units of a block.
    """

    tokens: Tensor
    blocks: Tensor
    counts: list[int]
    block: int

    def parts(self) -> Iterator[Part]:
        """Yield the blocks that have rows."""
        start = 0
        for number, count in enumerate(self.counts):
            if count:
                rows = slice(start, start + count)
                units = slice(number * self.block, (number + 1) * self.block)
                yield Part(rows, units, self.tokens[rows])
            start += count

    def unused(self) -> Iterator[slice]:
        """Yield the units of the blocks without rows."""
        for number, count in enumerate(self.counts):
            if not count:
                yield slice(number * self.block, (number + 1) * self.block)


def group(chosen: Tensor, block: int) -> Grouped:
    """Group the chosen pairs of a token and a block by block.

    Args:
        chosen: true at the pairs.
        block: units of a block.

    Shape:
        chosen: (tokens, blocks), bool.
    """
    blocks, tokens = chosen.t().nonzero().t().contiguous().unbind()
    return Grouped(tokens, blocks, chosen.sum(0).tolist(), block)


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
        soft: what the mask's gradient passes straight through to, at the pairs that are computed; its value
            is not read.
        block: units of a block.
        probed: tokens whose dropped blocks are computed too, in the backward pass, for their mask's gradient
            alone.

    Shape:
        x, result: (tokens, width); kept, soft: (tokens, blocks); probed: (tokens,), bool.
    """
    rows = group(kept, block)
    hidden = mlp.activation(Expand.apply(x, *mlp.first, rows))
    second = mlp.second
    out = Project.apply(hidden, soft[rows.tokens, rows.blocks], second.weight, second.multiply, rows, len(x))
    if second.bias is not None:
        out = out + second.bias
    if probed is not None:
        out = Probe.apply(out, soft, x.detach(), mlp, ~kept, probed.nonzero()[:, 0])
    return out


def can_group(*tensors: Tensor) -> bool:
    """Say whether pairs can be grouped here: not in a compiled graph, whose shapes do not depend on values.

    Nor on tensors without values, shards, or inside a transform of functions.
    """
    return not torch.compiler.is_compiling() and all(
        unwrapped(tensor) and tensor.device.type != "meta" for tensor in tensors
    )


def pays(share: float, block: int) -> bool:
    """Say whether computing a share of the pairs takes less time than computing all in one product."""
    return share * (1 + UNITS_OF_A_ROW / block) < 1


class Expand(torch.autograd.Function):
    """The first product: ``W_b x_t + a_b`` for each pair of a token and a block.

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
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, gradient = ctx.rows, gradient.contiguous()
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        of_x = sums(x.shape, x) if wants_x else None
        of_weight = torch.empty_like(weight) if wants_weight else None
        of_bias = weight.new_zeros(len(weight)) if wants_bias else None
        for part in rows.parts():
            own = gradient[part.rows]
            if of_x is not None:
                change = times(ctx.multiply, own, weight[part.units].t())
                of_x.index_add_(0, part.tokens, change.to(of_x.dtype))
            if of_weight is not None:
                entering = x.index_select(0, part.tokens)
                of_weight[part.units] = ctx.multiply(own.t(), entering.t())
            if of_bias is not None:
                torch.sum(own, 0, out=of_bias[part.units])
        if of_weight is not None:
            for units in rows.unused():
                of_weight[units] = 0
        return None if of_x is None else of_x.to(x.dtype), of_weight, of_bias, None, None


class Project(torch.autograd.Function):
    """The second product: the sum of ``V_b h`` over a token's pairs, and the gradient of the mask there.

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
            change = times(multiply, hidden[part.rows], weight[:, part.units])
            out.index_add_(0, part.tokens, change.to(out.dtype))
        return out.to(hidden.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        rows, gradient = ctx.rows, gradient.contiguous()
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.empty_like(weight) if ctx.needs_input_grad[2] else None
        for part in rows.parts():
            own = gradient.index_select(0, part.tokens)
            of_hidden[part.rows] = times(ctx.multiply, own, weight[:, part.units].t())
            if of_weight is not None:
                # The transposed factor is copied by some libraries, so that is the smaller one.
                of_weight[:, part.units] = ctx.multiply(hidden[part.rows].t(), own.t()).t()
        if of_weight is not None:
            for units in rows.unused():
                of_weight[:, units] = 0
        of_soft = dots(of_hidden, hidden, ctx.soft_dtype) if ctx.needs_input_grad[1] else None
        return of_hidden, of_soft, of_weight, None, None, None


class Probe(torch.autograd.Function):
    """The identity, whose backward pass computes the mask's gradient where some tokens drop their blocks.

    Shape:
        out, x: (tokens, width); soft, dropped: (tokens, blocks); tokens: (probed,), which those are.
    """

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, soft: Tensor, x: Tensor, mlp: TwoProducts, dropped: Tensor, tokens: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, mlp.first.weight, mlp.first.bias, mlp.second.weight, dropped, tokens)
        ctx.multiply, ctx.activation, ctx.soft_dtype = mlp.first.multiply, mlp.activation, soft.dtype
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, first, bias, second, dropped, tokens = ctx.saved_tensors
        of_soft = None
        if ctx.needs_input_grad[1]:
            hidden = ctx.activation(times(ctx.multiply, x.index_select(0, tokens), first, bias))
            of_hidden = times(ctx.multiply, gradient.index_select(0, tokens), second.t())
            blocks = (dropped.shape[1], hidden.shape[1] // dropped.shape[1])
            found = dots(of_hidden.unflatten(1, blocks), hidden.unflatten(1, blocks), ctx.soft_dtype)
            of_soft = torch.zeros(dropped.shape, dtype=ctx.soft_dtype, device=x.device)
            of_soft[tokens] = found * dropped[tokens]
        return gradient, of_soft, None, None, None, None


def times(multiply: Callable, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x weight^T + bias``, where the weight may be a part of a larger one.

    Fast products are 1,000 times slower on such a part, so it is copied first; for a few rows that takes
    longer than the product.
    """
    if len(x) < FEW_ROWS:
        return F.linear(x, weight, bias)
    if multiply is not F.linear and not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()
    return multiply(x, weight, bias)


def sums(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return zeros to add up in: at least float32, since a token's blocks are added one by one."""
    return like.new_zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32))


def dots(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the inner products along the last dimension."""
    return (a * b).sum(-1, dtype=torch.promote_types(a.dtype, torch.float32)).to(dtype)
