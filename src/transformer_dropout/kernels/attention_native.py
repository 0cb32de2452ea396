"""Causal attention of `attention` as native loops that skip the future and draw the mask on the way.

The queries of a block lie side by side, so that each instruction acts on a vector of them.
"""

import numba
import numpy as np
import torch
from torch import Tensor

from ._compiled import compiled
from .mask_native import narrowed, widened
from .random_native import element_bits, key_words
from .tile_native import VECTOR, tile

# Queries of a block, and keys or channels that one tile takes.
LANES, STEP = 32, 8
wide_tile, narrow_tile = tile(STEP, LANES // VECTOR), tile(STEP, 1)

LOG2_E, LN_2, LN_2_REST = map(np.float32, (1.4426950408889634, 0.693359375, -2.12194440e-4))
# exp(x) = 1 + x + x^2 P(x) for |x| <= ln(2) / 2, to a rounding of float32.
EXPONENTIAL = tuple(
    map(np.float32, (0.5, 0.16666665459, 0.041665795894, 0.0083334519073, 0.0013981999507, 0.0001987569150))
)


@numba.njit(inline="always")
def exponential(x):
    """Return exp(x) for x up to 80, and exactly 0 below -87."""
    seen = np.float32(0) if x < np.float32(-87) else np.float32(1)
    x = np.float32(-87) if x < np.float32(-87) else x
    turns = np.rint(x * LOG2_E)
    x = (x - turns * LN_2) - turns * LN_2_REST
    p = EXPONENTIAL[3] + x * (EXPONENTIAL[4] + x * EXPONENTIAL[5])
    p = EXPONENTIAL[0] + x * (EXPONENTIAL[1] + x * (EXPONENTIAL[2] + x * p))
    power = np.int32((np.int32(turns) + np.int32(127)) << np.int32(23)).view(np.float32)
    return (np.float32(1) + (x + x * x * p)) * (power * seen)


@numba.njit(inline="always")
def load(source, rows, target):
    """Copy rows as float32 into the first columns of a wider array."""
    for row in range(rows):
        for c in range(source.shape[1]):
            target[row, c] = widened(source[row, c])


@numba.njit(inline="always")
def load_block(source, start, count, factor, rows, columns):
    """Copy a block of queries as rows and as columns; lanes without a query are 0."""
    for lane in range(LANES):
        for c in range(source.shape[1]):
            value = np.float32(0)
            if lane < count:
                value = widened(source[start + lane, c]) * factor
            rows[lane, c] = columns[c, lane] = value


@numba.njit(inline="always")
def times_columns(left, columns, count, out):
    """Write ``left columns`` for the first rows of ``left``, of which there are a multiple of STEP."""
    width = left.shape[1]
    a, b, o = left.reshape(-1), columns.reshape(-1), out.reshape(-1)
    for row in range(0, count, STEP):
        wide_tile(a, row * width, width, 1, b, 0, LANES, width, o, row * LANES, LANES, True)


@numba.njit(inline="always")
def transposed_times(left, tiles, count, out):
    """Write ``left^T tiles`` over the first rows of both."""
    width = left.shape[1]
    a, b, o = left.reshape(-1), tiles.reshape(-1), out.reshape(-1)
    for c in range(0, width, STEP):
        wide_tile(a, c, 1, width, b, 0, LANES, count, o, c * LANES, LANES, True)


@numba.njit(inline="always")
def add_product(tiles, rows, count, out):
    """Add ``tiles rows`` to the first rows of ``out``."""
    width = rows.shape[1]
    a, b, o = tiles.reshape(-1), rows.reshape(-1), out.reshape(-1)
    for row in range(0, count, STEP):
        for c in range(0, width, VECTOR):
            narrow_tile(a, row * LANES, LANES, 1, b, c, width, LANES, o, row * width + c, width, False)


@numba.njit(inline="always")
def largest(scores, start, count, top):
    """Hide the future of each query and find the largest of its scores."""
    top[:] = -np.inf
    for j in range(count):
        line = scores[j]
        for lane in range(LANES):
            value = line[lane] if j <= start + lane else np.float32(-np.inf)
            line[lane] = value
            top[lane] = max(top[lane], value)


@numba.njit(inline="always")
def kept(line, starts, j, first, second, threshold):
    """Set to 0 what the mask drops of one key's weights."""
    for lane in range(LANES):
        bits = np.int32(element_bits(starts[lane] + np.uint32(j), first, second))
        line[lane] = line[lane] if bits >= threshold else np.float32(0)


@numba.njit(inline="always")
def first_elements(starts, head, start, tokens):
    """Write the index of each query's first weight, as the random numbers count them."""
    for lane in range(LANES):
        starts[lane] = np.uint32((head * tokens + start + lane) * tokens)


@compiled
def forward(query, key, value, factor, first, second, threshold, scale, out, log_sum):
    batch, heads, tokens, size = query.shape
    padded, width = -(-tokens // STEP) * STEP, -(-size // VECTOR) * VECTOR
    k, v = np.zeros((padded, width), np.float32), np.zeros((padded, width), np.float32)
    q, columns = np.zeros((LANES, width), np.float32), np.zeros((width, LANES), np.float32)
    weights, mixed = np.empty((padded, LANES), np.float32), np.empty((width, LANES), np.float32)
    top, total, starts = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.uint32)
    for head in range(batch * heads):
        b, h = head // heads, head % heads
        load(key[b, h], tokens, k)
        load(value[b, h], tokens, v)
        for start in range(0, tokens, LANES):
            count = min(LANES, tokens - start)
            seen = -(-(start + count) // STEP) * STEP
            load_block(query[b, h], start, count, factor, q, columns)
            times_columns(k, columns, seen, weights)
            largest(weights, start, seen, top)
            first_elements(starts, head, start, tokens)
            total[:] = 0
            for j in range(seen):
                line = weights[j]
                for lane in range(LANES):
                    line[lane] = exponential(line[lane] - top[lane])
                    total[lane] += line[lane]
                if threshold > -(2**31):
                    kept(line, starts, j, first, second, threshold)
            transposed_times(v, weights, seen, mixed)
            for lane in range(count):
                share = scale / total[lane]
                for c in range(size):
                    out[b, h, start + lane, c] = narrowed(mixed[c, lane] * share, out)
                log_sum[b, h, start + lane] = top[lane] + np.log(total[lane])


@numba.njit(inline="always")
def row_products(left, right, start, count, out):
    """Write the product of each query's row in one array with that in another."""
    out[:] = 0
    for lane in range(count):
        total = np.float32(0)
        for c in range(left.shape[1]):
            total += widened(left[start + lane, c]) * widened(right[start + lane, c])
        out[lane] = total


@compiled
def backward(
    gradient, query, key, value, out, log_sum, factor, first, second, threshold, scale, dquery, dkey, dvalue
):
    batch, heads, tokens, size = query.shape
    padded, width = -(-tokens // STEP) * STEP, -(-size // VECTOR) * VECTOR
    k, v = np.zeros((padded, width), np.float32), np.zeros((padded, width), np.float32)
    dk, dv = np.empty((padded, width), np.float32), np.empty((padded, width), np.float32)
    q, columns = np.zeros((LANES, width), np.float32), np.zeros((width, LANES), np.float32)
    g, g_columns = np.zeros((LANES, width), np.float32), np.zeros((width, LANES), np.float32)
    weights, changes = np.empty((padded, LANES), np.float32), np.empty((padded, LANES), np.float32)
    dq, common = np.empty((width, LANES), np.float32), np.empty(LANES, np.float32)
    sums, starts = np.zeros(LANES, np.float32), np.empty(LANES, np.uint32)
    ones = np.ones(LANES, np.float32)
    for head in range(batch * heads):
        b, h = head // heads, head % heads
        load(key[b, h], tokens, k)
        load(value[b, h], tokens, v)
        dk[:], dv[:] = 0, 0
        for start in range(0, tokens, LANES):
            count = min(LANES, tokens - start)
            seen = -(-(start + count) // STEP) * STEP
            load_block(query[b, h], start, count, factor, q, columns)
            load_block(gradient[b, h], start, count, scale, g, g_columns)
            times_columns(k, columns, seen, weights)
            times_columns(v, g_columns, seen, changes)
            row_products(gradient[b, h], out[b, h], start, count, common)
            sums[:count] = log_sum[b, h, start : start + count]
            first_elements(starts, head, start, tokens)
            for j in range(seen):
                line, change = weights[j], changes[j]
                ones[:] = 1
                if threshold > -(2**31):
                    kept(ones, starts, j, first, second, threshold)
                for lane in range(LANES):
                    visible = np.float32(1) if j <= start + lane else np.float32(0)
                    weight = exponential(min(line[lane] - sums[lane], np.float32(0.1))) * visible
                    change[lane] = weight * (change[lane] * ones[lane] - common[lane])
                    line[lane] = weight * ones[lane]
            transposed_times(k, changes, seen, dq)
            add_product(changes, q, seen, dk)
            add_product(weights, g, seen, dv)
            for lane in range(count):
                for c in range(size):
                    dquery[b, h, start + lane, c] = narrowed(dq[c, lane] * factor, dquery)
        for j in range(tokens):
            for c in range(size):
                dkey[b, h, j, c] = narrowed(dk[j, c], dkey)
                dvalue[b, h, j, c] = narrowed(dv[j, c], dvalue)


def attended(
    query: Tensor, key: Tensor, value: Tensor, mask: tuple[Tensor, int, float]
) -> tuple[Tensor, Tensor]:
    """Return what the heads mix, and the logarithm of each query's sum of exponentials.

    Args:
        query, key, value: as of ``attention.causal_attention``.
        mask: of ``attention.mask_numbers``.
    """
    batch, heads, tokens, size = query.shape
    # As the projection behind it reads it.
    out = query.new_empty(batch, tokens, heads, size).transpose(1, 2)
    log_sum = torch.empty(batch, heads, tokens)
    forward(*map(as_array, (query, key, value)), *numbers(size, mask), as_array(out), log_sum.numpy())
    return out, log_sum


def gradients(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    log_sum: Tensor,
    mask: tuple[Tensor, int, float],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value."""
    found = tuple(torch.empty_like(tensor) for tensor in (query, key, value))
    backward(
        *map(as_array, (gradient, query, key, value, out)),
        log_sum.numpy(),
        *numbers(query.shape[-1], mask),
        *map(as_array, found),
    )
    return found


def numbers(size: int, mask: tuple[Tensor, int, float]) -> tuple[np.number, ...]:
    """Return the factor of the scores, the words of the key, the threshold and the scale of what is kept."""
    key, threshold, scale = mask
    return np.float32(size**-0.5), *key_words(key), np.int32(threshold), np.float32(scale)


def as_array(tensor: Tensor) -> np.ndarray:
    """Return a tensor's memory as it lies; bfloat16 as the int16 with the same bits."""
    tensor = tensor.detach()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
