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
def gather(source, place, sequence, sizes, target):
    """Copy a sequence's heads as float32 into the first columns of wider rows, in the order of memory."""
    heads, tokens, size = sizes
    for token in range(tokens):
        at = sequence * place[0] + token * place[2]
        for head in range(heads):
            start, row = at + head * place[1], target[head, token]
            for c in range(size):
                row[c] = widened(source[start + c])


@numba.njit(inline="always")
def scatter(source, place, sequence, sizes, target):
    """Write the first columns of rows where a tensor has a sequence's heads, in the order of memory."""
    heads, tokens, size = sizes
    for token in range(tokens):
        at = sequence * place[0] + token * place[2]
        for head in range(heads):
            start, row = at + head * place[1], source[head, token]
            for c in range(size):
                target[start + c] = narrowed(row[c], target)


@numba.njit(inline="always")
def as_columns(rows, start, size, factor, columns):
    """Copy a block of rows, times a factor, as columns."""
    for c in range(size):
        line = columns[c]
        for lane in range(LANES):
            line[lane] = rows[start + lane, c] * factor


@numba.njit(inline="always")
def as_rows(columns, size, factors, rows, start):
    """Copy columns, each times its factor, as a block of rows."""
    for lane in range(LANES):
        row, factor = rows[start + lane], factors[lane]
        for c in range(size):
            row[c] = columns[c, lane] * factor


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
def add_product(tiles, rows, start, count, out):
    """Add the product of tiles with a block of rows to the first rows of ``out``."""
    width = rows.shape[1]
    a, b, o = tiles.reshape(-1), rows.reshape(-1), out.reshape(-1)
    for row in range(0, count, STEP):
        for c in range(0, width, VECTOR):
            narrow_tile(a, row * LANES, LANES, 1, b, start * width + c, width, LANES, o, row * width + c, width, False)


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


@compiled
def forward(query, key, value, places, sizes, numbers, mask, out, log_sum):
    heads, tokens, size = sizes
    factor, scale = numbers
    first, second, threshold = mask
    padded, width = -(-tokens // LANES) * LANES, -(-size // VECTOR) * VECTOR
    qs, ks, vs, os = [np.zeros((heads, padded, width), np.float32) for _ in range(4)]
    columns, mixed = np.zeros((width, LANES), np.float32), np.empty((width, LANES), np.float32)
    weights = np.empty((padded, LANES), np.float32)
    top, total, starts = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.uint32)
    for sequence in range(log_sum.shape[0]):
        gather(query, places[0], sequence, sizes, qs)
        gather(key, places[1], sequence, sizes, ks)
        gather(value, places[2], sequence, sizes, vs)
        for head in range(heads):
            q, k, v, o = qs[head], ks[head], vs[head], os[head]
            for start in range(0, tokens, LANES):
                seen = start + LANES
                as_columns(q, start, size, factor, columns)
                times_columns(k, columns, seen, weights)
                largest(weights, start, seen, top)
                first_elements(starts, sequence * heads + head, start, tokens)
                total[:] = 0
                for j in range(seen):
                    line = weights[j]
                    for lane in range(LANES):
                        line[lane] = exponential(line[lane] - top[lane])
                        total[lane] += line[lane]
                    if threshold > -(2**31):
                        keep(line, starts, j, first, second, threshold)
                transposed_times(v, weights, seen, mixed)
                for lane in range(LANES):
                    top[lane] += np.log(total[lane])
                    total[lane] = scale / total[lane]
                log_sum[sequence, head, start : start + LANES] = top
                as_rows(mixed, size, total, o, start)
        scatter(os, places[3], sequence, sizes, out)


@numba.njit(inline="always")
def chained(weights, changes, seen, start, sums, common, starts, mask, ones):
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
def backward(gradient, query, key, value, out, places, sizes, numbers, mask, log_sum, dquery, dkey, dvalue):
    heads, tokens, size = sizes
    factor, scale = numbers
    padded, width = -(-tokens // LANES) * LANES, -(-size // VECTOR) * VECTOR
    gs, qs, ks, vs, os, dqs, dks, dvs = [np.zeros((heads, padded, width), np.float32) for _ in range(8)]
    columns, g_columns = np.zeros((width, LANES), np.float32), np.zeros((width, LANES), np.float32)
    weights, changes = np.empty((padded, LANES), np.float32), np.empty((padded, LANES), np.float32)
    dq, common = np.empty((width, LANES), np.float32), np.empty(LANES, np.float32)
    starts, ones, factors = np.empty(LANES, np.uint32), np.ones(LANES, np.float32), np.full(LANES, factor)
    for sequence in range(log_sum.shape[0]):
        gather(gradient, places[0], sequence, sizes, gs)
        gather(query, places[1], sequence, sizes, qs)
        gather(key, places[2], sequence, sizes, ks)
        gather(value, places[3], sequence, sizes, vs)
        gather(out, places[4], sequence, sizes, os)
        dks[:], dvs[:] = 0, 0
        for head in range(heads):
            g, q, k, v, o, dk, dv = gs[head], qs[head], ks[head], vs[head], os[head], dks[head], dvs[head]
            for start in range(0, tokens, LANES):
                seen = start + LANES
                # The sum over keys of weight times gradient, through the output; one scale is in there already.
                for lane in range(LANES):
                    common[lane] = 0
                as_columns(o, start, size, np.float32(1), columns)
                as_columns(g, start, size, np.float32(1), g_columns)
                for c in range(size):
                    for lane in range(LANES):
                        common[lane] += g_columns[c, lane] * columns[c, lane]
                        g_columns[c, lane] *= scale
                as_columns(q, start, size, factor, columns)
                first_elements(starts, sequence * heads + head, start, tokens)
                times_columns(k, columns, seen, weights)
                times_columns(v, g_columns, seen, changes)
                sums = log_sum[sequence, head, start : start + LANES]
                chained(weights, changes, seen, start, sums, common, starts, mask, ones)
                transposed_times(k, changes, seen, dq)
                as_rows(dq, size, factors, dqs[head], start)
                add_product(changes, q, start, seen, dk)
                add_product(weights, g, start, seen, dv)
            dk *= factor
            dv *= scale
        scatter(dqs, places[5], sequence, sizes, dquery)
        scatter(dks, places[6], sequence, sizes, dkey)
        scatter(dvs, places[7], sequence, sizes, dvalue)


Mask = tuple[Tensor, int, float]


def attended(query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
    """Return what the heads mix, and the logarithm of each query's sum of exponentials.

    Args:
        query, key, value: as of ``attention.causal_attention``.
        mask: the key of the random numbers, and ``dropout.mask_numbers``.
    """
    batch, heads, tokens, size = query.shape
    # As the projection behind it reads it.
    out = query.new_empty(batch, tokens, heads, size).transpose(1, 2)
    log_sum = torch.empty(batch, heads, -(-tokens // LANES) * LANES)
    arrays, places = laid_out(query, key, value, out)
    forward(*arrays[:3], places, *scalars(query, mask), arrays[3], log_sum.numpy())
    return out, log_sum


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
    found = query.new_empty(3, batch, tokens, heads, size).transpose(2, 3).unbind()
    arrays, places = laid_out(gradient, query, key, value, out, *found)
    backward(*arrays[:5], places, *scalars(query, mask), log_sum.numpy(), *arrays[5:])
    return found


def laid_out(*tensors: Tensor) -> tuple[list[np.ndarray], np.ndarray]:
    """Return each tensor's memory as one row, and where its sequences, heads and tokens begin there.

    Shape:
        tensors: (batch, heads, tokens, d), the channels side by side; places: (tensors, 3).
    """
    rows, places = [], []
    for tensor in tensors:
        tensor = tensor.detach()
        if tensor.stride(-1) != 1:
            tensor = tensor.contiguous()
        length = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        row = tensor.as_strided((length,), (1,))
        rows.append((row.view(torch.int16) if row.dtype == torch.bfloat16 else row).numpy())
        places.append(tensor.stride()[:3])
    return rows, np.array(places)


def scalars(query: Tensor, mask: Mask) -> tuple[tuple, tuple, tuple]:
    """Return the sizes; the factors of scores, of what is kept and of what is not scaled; the mask's numbers."""
    key, threshold, scale = mask
    return (
        tuple(query.shape[1:]),
        (np.float32(query.shape[-1] ** -0.5), np.float32(scale)),
        (*key_words(key), np.int32(threshold)),
    )
