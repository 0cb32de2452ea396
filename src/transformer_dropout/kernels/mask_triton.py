"""The mask operation of `mask` in Triton: one pass over the memory of a GPU forward, one backward.

Nothing but the key is kept for the backward, which makes the mask again: the integer hash hides behind its
memory traffic, while packing bits would burden the forward, the pass with the least time to spare. It is the
same mask, because both passes compute the same bits of ``M``: each product that meets a sum is written as one
``fma``, which leaves the compiler nothing to contract in one pass and not in the other.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import random

STEP = tl.constexpr(random.STEP)
FIRST_FACTOR = tl.constexpr(random.FIRST_FACTOR)
SECOND_FACTOR = tl.constexpr(random.SECOND_FACTOR)
# Adding 1.5 * 2^23 rounds a float32 to an integer, which is then its lowest bits.
ROUND = tl.constexpr(1.5 * 2**23)
INVERSE_PI = tl.constexpr(0.3183098861837907)
PI, PI_REST = tl.constexpr(3.1415927410125732), tl.constexpr(-8.742277657347586e-08)
HALF_PI = tl.constexpr(1.5707964)

# Elements of a tile: for each thread of 4 warps the 8 neighbours of bfloat16 that one load brings.
TILE = 1024
WARPS = 4
# Enough programs to fill a GPU some times over; beyond that each takes more tiles, for fewer partial sums.
PROGRAMS = 8192


class Plan(NamedTuple):
    """How the rows and channels of a tensor are shared among programs.

    Attributes:
        rows, columns: of a tile; powers of two.
        tiles: of one program, below each other.
        groups: of rows, each the rows of one program.
        blocks: of channels, each the channels of one program.
    """

    rows: int
    columns: int
    tiles: int
    groups: int
    blocks: int


def plan_for(rows: int, width: int) -> Plan:
    """Return a plan whose tiles reach little beyond the channels."""
    columns = next((c for c in (128, 64, 32) if -(-width // c) * c <= 1.125 * width), 16)
    blocks, height = triton.cdiv(width, columns), TILE // columns
    tiles = max(1, min(16, triton.cdiv(rows, height) * blocks // PROGRAMS))
    return Plan(height, columns, tiles, triton.cdiv(rows, height * tiles), blocks)


@triton.jit
def upper_bits(counter, second):
    """Return what `random.random_bits` does with 0 for the lowest 8 bits, as float32, which it is exactly.

    Args:
        counter: index of an element times ``STEP``, plus the first word of the key, as uint32.
        second: the other word.
    """
    x = counter ^ (counter >> 16)
    x = (x * FIRST_FACTOR) ^ second
    x ^= x >> 15
    x *= SECOND_FACTOR
    return ((x ^ (x >> 15)) & 0xFFFFFF00).to(tl.float32)


@triton.jit
def reduced(gate, shift):
    """Return ``u = gate + shift`` less the nearest multiple of pi, and whether that multiple is odd."""
    u = gate.to(tl.float32) + shift
    rounded = tl.fma(u, INVERSE_PI, ROUND)
    odd = (rounded.to(tl.int32, bitcast=True) & 1) != 0
    turns = rounded - ROUND
    rest = tl.fma(turns, -PI_REST, tl.fma(turns, -PI, u))
    # Only beyond 2^22 turns does this change anything: M stays within 0 and 1 there, and NaN stays NaN.
    return tl.clamp(rest, -HALF_PI, HALF_PI, propagate_nan=tl.PropagateNan.ALL), odd


@triton.jit
def keep_probability(rest, odd):
    """Return ``M = cos^2(u / 2)``: ``sin^2(rest / 2)`` after an odd multiple of pi, else one minus that.

    The polynomial is within 1e-9 of ``sin^2(rest / 2) / rest^2``, so small M are as exact as large ones.
    """
    square = rest * rest
    series = tl.fma(square, 1.3142564e-07, -1.2386983e-05)
    series = tl.fma(square, series, 0.0006944321)
    series = tl.fma(square, series, -0.02083333)
    series = tl.fma(square, series, 0.25)
    return tl.fma(tl.where(odd, square, -square), series, tl.where(odd, 0.0, 1.0))


@triton.jit
def slope(rest, odd):
    """Return ``dM/du = -sin(u) / 2``; the polynomial is within 6e-9 of ``sin(rest) / (2 rest)``."""
    square = rest * rest
    series = tl.fma(square, 1.3009362e-06, -9.9037024e-05)
    series = tl.fma(square, series, 0.0041665123)
    series = tl.fma(square, series, -0.08333328)
    series = tl.fma(square, series, 0.5)
    return tl.where(odd, rest, -rest) * series


@triton.jit
def zero_or_one(probability, key_ptr, start, below, width, column):
    """Return the mask as float32: drawn with a key, else by the threshold; NaN stays NaN."""
    if key_ptr is None:
        mask = tl.floor(probability + 0.5)
    else:
        # Read here and not by the host, so that each replay of a CUDA graph has a fresh mask.
        first = tl.load(key_ptr).to(tl.uint32, bitcast=True)
        second = tl.load(key_ptr + 1).to(tl.uint32, bitcast=True)
        # Products for a row and for a channel, which leave one sum for each element. The counter is modulo
        # 2^32, addresses are not.
        counter = (start.to(tl.uint32) + (below * width).to(tl.uint32)) * STEP + first
        bits = upper_bits(counter + column.to(tl.uint32) * STEP, second)
        mask = tl.ceil(tl.fma(bits, -(2.0**-32), probability))
    return mask


@triton.jit
def row_weights(weight_ptr, row, rows, below):
    """Return what each row of a tile counts in the penalty."""
    if weight_ptr is None:
        weight = tl.where(below < rows - row, 1.0, 0.0)
    else:
        weight = tl.load(weight_ptr + row + below, below < rows - row, 0.0)
    return weight


@triton.jit
def forward_kernel(
    x_ptr, gate_ptr, shift_ptr, key_ptr, weight_ptr, y_ptr, totals_ptr, rows, width, tiles,
    PENALTY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write ``y`` and, for each program, the sum of the penalty over its elements."""
    blocks = tl.cdiv(width, COLUMNS)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    shift = tl.load(shift_ptr + column, column < width, 0.0).to(tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    below = tl.arange(0, ROWS)[:, None]
    for number in range(tiles):
        row = (group * tiles + number) * ROWS
        start, offsets = row * width, below * width + column
        inside = (below < rows - row) & (column < width)
        rest, odd = reduced(tl.load(gate_ptr + start + offsets, inside, 0.0), shift)
        probability = keep_probability(rest, odd)
        x = tl.load(x_ptr + start + offsets, inside).to(tl.float32)
        y = x * zero_or_one(probability, key_ptr, start, below, width, column)
        tl.store(y_ptr + start + offsets, y.to(y_ptr.dtype.element_ty), inside)
        if PENALTY is not None:
            weighted = row_weights(weight_ptr, row, rows, below) * probability
            total += weighted * probability if PENALTY == "squared" else weighted
    if PENALTY is not None:
        total *= 0.5 if PENALTY == "squared" else 1.0
        tl.store(totals_ptr + tl.program_id(0), tl.sum(tl.where(column < width, total, 0.0)))


@triton.jit
def backward_kernel(
    dy_ptr, scale_ptr, x_ptr, gate_ptr, shift_ptr, key_ptr, weight_ptr, dx_ptr, dgate_ptr, dshift_ptr,
    rows, width, tiles, PENALTY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write the gradients of ``x`` and the gate and, for each group of rows, its part of the shift's."""
    blocks = tl.cdiv(width, COLUMNS)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    shift = tl.load(shift_ptr + column, column < width, 0.0).to(tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    below = tl.arange(0, ROWS)[:, None]
    for number in range(tiles):
        row = (group * tiles + number) * ROWS
        start, offsets = row * width, below * width + column
        inside = (below < rows - row) & (column < width)
        rest, odd = reduced(tl.load(gate_ptr + start + offsets, inside, 0.0), shift)
        probability = keep_probability(rest, odd)
        dy = tl.load(dy_ptr + start + offsets, inside, 0.0).to(tl.float32)
        x = tl.load(x_ptr + start + offsets, inside, 0.0).to(tl.float32)
        dx = dy * zero_or_one(probability, key_ptr, start, below, width, column)
        tl.store(dx_ptr + start + offsets, dx.to(dx_ptr.dtype.element_ty), inside)
        chain = dy * x
        if PENALTY is not None:
            rate = tl.load(scale_ptr) * row_weights(weight_ptr, row, rows, below)
            chain = tl.fma(rate, probability, chain) if PENALTY == "squared" else chain + rate
        chain *= slope(rest, odd)
        tl.store(dgate_ptr + start + offsets, chain.to(dgate_ptr.dtype.element_ty), inside)
        total += chain
    place = dshift_ptr + group * width + column
    tl.store(place, tl.sum(total, 0)[None, :], column < width)


def masked(
    x: Tensor,
    gate: Tensor,
    shift: Tensor,
    key: Tensor | None,
    penalty: str | None,
    weight: Tensor | None,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the output, the key as what the backward needs to know of the mask, the sum of the penalty."""
    y, rows, width = torch.empty_like(x), x.numel() // x.shape[-1], x.shape[-1]
    plan = plan_for(rows, width)
    programs = plan.groups * plan.blocks
    totals = None if penalty is None else x.new_empty(programs, dtype=torch.float32)
    with torch.cuda.device_of(x):
        forward_kernel[(programs,)](
            x, gate, shift, key, weight, y, totals, rows, width, plan.tiles,
            PENALTY=penalty, ROWS=plan.rows, COLUMNS=plan.columns, num_warps=WARPS,
        )  # fmt: skip
    return y, key if keep else None, None if totals is None else totals.sum()


def gradients(
    y_gradient: Tensor,
    scale: Tensor | None,
    x: Tensor,
    gate: Tensor,
    shift: Tensor,
    key: Tensor | None,
    penalty: str | None,
    weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of ``x``, ``gate`` and ``shift``; partial sums make the last one deterministic."""
    x_gradient, gate_gradient = torch.empty_like(x), torch.empty_like(gate)
    rows, width = x.numel() // x.shape[-1], x.shape[-1]
    plan = plan_for(rows, width)
    parts = x.new_empty((plan.groups, width), dtype=torch.float32)
    with torch.cuda.device_of(x):
        backward_kernel[(plan.groups * plan.blocks,)](
            y_gradient, scale, x, gate, shift, key, weight, x_gradient, gate_gradient, parts, rows, width,
            plan.tiles, PENALTY=None if scale is None else penalty,
            ROWS=plan.rows, COLUMNS=plan.columns, num_warps=WARPS,
        )  # fmt: skip
    return x_gradient, gate_gradient, parts.sum(0).to(shift.dtype)


def mask_of(key: Tensor | None, x: Tensor, gate: Tensor, shift: Tensor) -> Tensor:
    """Return the mask alone, as booleans, for a backward in pure PyTorch."""
    return masked(torch.ones_like(x), gate, shift, key, None, None, keep=False)[0].to(torch.bool)
