"""Causal attention of `kernels.attention` as native loops that skip the future and draw the mask on the way.

The queries of a block lie side by side, so that each instruction acts on a vector of them.
"""

from collections.abc import Iterable

import numba
import numpy as np
import torch
from torch import Tensor

from ._compiled import as_pointer, compiled
from .random import element_bits, key_words
from .tile import VECTOR, tile

# Queries of a block, and keys or channels that one tile takes.
LANES, STEP = 32, 8
wide_tile, narrow_tile = tile(STEP, LANES // VECTOR), tile(STEP, 1)

ENDLESS = 2**62

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
def memory(places, number):
    """Return the memory from a tensor's first number on as one row without an end."""
    return numba.carray(as_pointer(places[number, 0]), (ENDLESS,), np.float32)  # pyrefly: ignore


@numba.njit(inline="always")
def load(source, at, step, count, size, factor, target):
    """Copy rows, times a factor, to those of a wider array."""
    for row in range(count):
        start, line = at + row * step, target[row]
        part = source[start : start + size]
        for c in range(size):
            line[c] = part[c] * factor


@numba.njit(inline="always")
def load_columns(source, at, step, count, size, factor, rows, columns):
    """Copy a block of queries, times a factor, as rows and as columns; lanes without a query are 0."""
    load(source, at, step, count, size, factor, rows)
    rows[count:] = 0
    for c in range(size):
        line = columns[c]
        for row in range(LANES):
            line[row] = rows[row, c]


@numba.njit(inline="always")
def store(rows, factors, count, size, target, at, step):
    """Write rows, each times its factor, where a tensor has them."""
    for row in range(count):
        start, line, factor = at + row * step, rows[row], factors[row]
        part = target[start : start + size]
        for c in range(size):
            part[c] = line[c] * factor


@numba.njit(inline="always")
def store_columns(columns, factors, count, size, target, at, step):
    """Write columns, each times its factor, as the rows of a tensor."""
    for row in range(count):
        start, factor = at + row * step, factors[row]
        part = target[start : start + size]
        for c in range(size):
            part[c] = columns[c, row] * factor


@numba.njit(inline="always")
def row_products(rows, source, at, step, count, size, factor, sums):
    """Write the sum of each row's products with a row of a tensor, that times a factor."""
    for row in range(count):
        start, line, total = at + row * step, rows[row], np.float32(0)
        part = source[start : start + size]
        for c in range(size):
            total += line[c] * (part[c] * factor)
        sums[row] = total


@numba.njit(inline="always")
def times_columns(left, columns, size, count, out):
    """Write ``left columns``, over channels, for the first rows of ``left``, a multiple of STEP."""
    width = left.shape[1]
    a, b, o = left.reshape(-1), columns.reshape(-1), out.reshape(-1)
    for row in range(0, count, STEP):
        wide_tile(a, row * width, width, 1, b, 0, LANES, size, o, row * LANES, LANES, True)


@numba.njit(inline="always")
def transposed_times(left, tiles, size, count, out):
    """Write ``left^T tiles``, a row a channel, over the first rows of both."""
    width = left.shape[1]
    a, b, o = left.reshape(-1), tiles.reshape(-1), out.reshape(-1)
    for c in range(0, size, STEP):
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
def keep(line, starts, j, first, second, threshold):
    """Set to 0 what the mask drops of one key's weights."""
    for lane in range(LANES):
        bits = np.int32(element_bits(starts[lane] + np.uint32(j), first, second))
        line[lane] = line[lane] if bits >= threshold else np.float32(0)


@numba.njit(inline="always")
def first_elements(starts, head, start, tokens):
    """Write the index of each query's first weight, as the random numbers count them."""
    for lane in range(LANES):
        starts[lane] = np.uint32((head * tokens + start + lane) * tokens)


@numba.njit(inline="always")
def head_places(places, head, heads, at):
    """Write where each tensor's rows of a head begin."""
    for i in range(at.size):
        at[i] = head // heads * places[i, 1] + head % heads * places[i, 2]


@compiled
def forward(places, sizes, numbers, mask, log_sum, sums):
    query, key, value = memory(places, 0), memory(places, 1), memory(places, 2)
    out = memory(places, 3)
    heads, tokens, size = sizes
    factor, scale, _ = numbers
    first, second, threshold = mask
    padded, width = -(-tokens // STEP) * STEP, -(-size // VECTOR) * VECTOR
    k, v = np.zeros((padded, width), np.float32), np.zeros((padded, width), np.float32)
    q, columns = np.zeros((LANES, width), np.float32), np.zeros((width, LANES), np.float32)
    weights, mixed = np.empty((padded, LANES), np.float32), np.empty((width, LANES), np.float32)
    top, total, starts = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.uint32)
    at, step = np.empty(len(places), np.int64), places[:, 3]
    one = np.float32(1)
    for head in range(log_sum.size // tokens):
        head_places(places, head, heads, at)
        load(key, at[1], step[1], tokens, size, one, k)
        load(value, at[2], step[2], tokens, size, one, v)
        for start in range(0, tokens, LANES):
            count = min(LANES, tokens - start)
            seen = -(-(start + count) // STEP) * STEP
            load_columns(query, at[0] + start * step[0], step[0], count, size, factor, q, columns)
            times_columns(k, columns, size, seen, weights)
            largest(weights, start, seen, top)
            first_elements(starts, head, start, tokens)
            total[:] = 0
            for j in range(seen):
                line = weights[j]
                for lane in range(LANES):
                    line[lane] = exponential(line[lane] - top[lane])
                    total[lane] += line[lane]
                if threshold > -(2**31):
                    keep(line, starts, j, first, second, threshold)
            transposed_times(v, weights, size, seen, mixed)
            for lane in range(count):
                log_sum[head * tokens + start + lane] = top[lane]
                sums[head * tokens + start + lane] = total[lane]
            for lane in range(LANES):
                total[lane] = scale / total[lane]
            store_columns(mixed, total, count, size, out, at[3] + start * step[3], step[3])


@numba.njit(inline="always")
def weights_and_score_gradients(weights, changes, seen, start, sums, common, starts, mask, ones):
    """Turn scores into the weights that were kept, and the weights' gradients into those of the scores."""
    first, second, threshold = mask
    for j in range(seen):
        line, change = weights[j], changes[j]
        ones[:] = 1
        if threshold > -(2**31):
            keep(ones, starts, j, first, second, threshold)
        for lane in range(LANES):
            # A score of the future may be so large that its exponential overflows.
            score = line[lane] - sums[lane] if j <= start + lane else np.float32(-np.inf)
            weight = exponential(score)
            change[lane] = weight * (change[lane] * ones[lane] - common[lane])
            line[lane] = weight * ones[lane]


@compiled
def backward(places, sizes, numbers, mask, log_sum):
    gradient, query, key = memory(places, 0), memory(places, 1), memory(places, 2)
    value, out = memory(places, 3), memory(places, 4)
    dquery, dkey, dvalue = memory(places, 5), memory(places, 6), memory(places, 7)
    heads, tokens, size = sizes
    factor, scale, share = numbers
    padded, width = -(-tokens // STEP) * STEP, -(-size // VECTOR) * VECTOR
    k, v = np.zeros((padded, width), np.float32), np.zeros((padded, width), np.float32)
    dk, dv = np.empty((padded, width), np.float32), np.empty((padded, width), np.float32)
    q, columns = np.zeros((LANES, width), np.float32), np.zeros((width, LANES), np.float32)
    g, g_columns = np.zeros((LANES, width), np.float32), np.zeros((width, LANES), np.float32)
    weights, changes = np.empty((padded, LANES), np.float32), np.empty((padded, LANES), np.float32)
    dq, common = np.empty((width, LANES), np.float32), np.zeros(LANES, np.float32)
    sums, starts = np.zeros(LANES, np.float32), np.empty(LANES, np.uint32)
    ones, factors = np.ones(LANES, np.float32), np.full(LANES, factor)
    ones_of_rows = np.ones(tokens, np.float32)
    at, step = np.empty(len(places), np.int64), places[:, 3]
    one = np.float32(1)
    for head in range(log_sum.size // tokens):
        head_places(places, head, heads, at)
        load(key, at[2], step[2], tokens, size, one, k)
        load(value, at[3], step[3], tokens, size, one, v)
        dk[:], dv[:] = 0, 0
        for start in range(0, tokens, LANES):
            count = min(LANES, tokens - start)
            seen = -(-(start + count) // STEP) * STEP
            load_columns(query, at[1] + start * step[1], step[1], count, size, factor, q, columns)
            load_columns(gradient, at[0] + start * step[0], step[0], count, size, scale, g, g_columns)
            # The sum over keys of weight times gradient, through the output; one scale is in there already.
            row_products(g, out, at[4] + start * step[4], step[4], count, size, share, common)
            for lane in range(count):
                sums[lane] = log_sum[head * tokens + start + lane]
            first_elements(starts, head, start, tokens)
            times_columns(k, columns, size, seen, weights)
            times_columns(v, g_columns, size, seen, changes)
            weights_and_score_gradients(weights, changes, seen, start, sums, common, starts, mask, ones)
            transposed_times(k, changes, size, seen, dq)
            add_product(changes, q, seen, dk)
            add_product(weights, g, seen, dv)
            store_columns(dq, factors, count, size, dquery, at[5] + start * step[5], step[5])
        store(dk, ones_of_rows, tokens, size, dkey, at[6], step[6])
        store(dv, ones_of_rows, tokens, size, dvalue, at[7], step[7])


Mask = tuple[Tensor, int, float]


def attended(query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
    """Return what the heads mix, and the logarithm of each query's sum of exponentials.

    Args:
        query, key, value: as of ``attention.causal_attention``; the loop computes in float32.
        mask: the key of the random numbers, and ``dropout.mask_numbers``.
    """
    batch, heads, tokens, size = query.shape
    # As the projection behind it reads it.
    out = torch.empty(batch, tokens, heads, size).transpose(1, 2)
    log_sum, sums = torch.empty(2, batch, heads, tokens)
    flat = (tensor.numpy().reshape(-1) for tensor in (log_sum, sums))
    tensors = [*readable(query, key, value), out]
    forward(places(tensors), *scalars(query, mask), *flat)
    return out.to(query.dtype), log_sum.add_(sums.log_())


def gradients(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    log_sum: Tensor,
    mask: Mask,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value; a mask that drops all has the scale 0."""
    batch, heads, tokens, size = query.shape
    # Side by side, as `heads.split_heads` wants them.
    found = torch.empty(batch, tokens, 3, heads, size)
    tensors = [*readable(gradient, query, key, value, out), *found.permute(2, 0, 3, 1, 4)]
    backward(places(tensors), *scalars(query, mask), log_sum.numpy().reshape(-1))
    of_query, of_key, of_value = found.to(query.dtype).permute(2, 0, 3, 1, 4)
    return of_query, of_key, of_value


def readable(*tensors: Tensor) -> list[Tensor]:
    """Return the tensors in float32, copied where the channels of a token do not lie side by side."""
    wide = [tensor.float() for tensor in tensors]
    return [tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in wide]


def places(tensors: Iterable[Tensor]) -> np.ndarray:
    """Return where tensors begin in memory, and how far their sequences, heads and tokens lie apart.

    Shape:
        tensors: (batch, heads, tokens, d); result: (tensors, 4).
    """
    return np.array([(tensor.data_ptr(), *tensor.stride()[:3]) for tensor in tensors])


def scalars(query: Tensor, mask: Mask) -> tuple[tuple, tuple, tuple]:
    """Return the sizes, the factors of scores, of what is kept and of what is not, and the mask's numbers."""
    key, threshold, scale = mask
    return (
        tuple(query.shape[1:]),
        (np.float32(query.shape[-1] ** -0.5), np.float32(scale), np.float32(1 / scale if scale else 0)),
        (*key_words(key), np.int32(threshold)),
    )
