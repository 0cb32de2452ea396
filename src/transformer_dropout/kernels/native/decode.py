"""One token through a whole pre-norm decoder with tied embeddings, in one native loop.

The loop reads float32 weights where they lie: it is handed their addresses. At batch 1 each weight is used
once for a token, so reading them is most of the work, and a row of a product that nobody needs is work saved.
"""

import math
from functools import partial

import numba
import numpy as np

from ._compiled import as_pointer, compiled
from .row_skipping import inner, kept_rows

# Columns of the table with one row for each block: the addresses of weights, each followed by that of its
# bias, 0 for one there is not.
ATTENTION_NORM, QKV, PROJECTION, MLP_NORM, EXPAND, CONTRACT, HEADS = 0, 2, 4, 6, 8, 10, 12
# Where the two gates of a block begin: those of the masks on the attention's and on the MLP's output.
ATTENTION_GATE, MLP_GATE = 13, 18
# Inside a gate: the projection and its bias, the shift, the heads, and whether it reads the embeddings.
GATE_SHIFT, GATE_HEADS, GATE_EARLY = 2, 3, 4
# Columns of what is there once: embeddings, norm, and the attention over the embeddings.
TOKEN, POSITION, NORM, SOURCE_QKV, SOURCE_PROJECTION, SOURCE_HEADS = 0, 1, 2, 4, 6, 8
# Each block has so many memories of keys and values: its attention's and those of its two gates.
MEMORIES = 3

NORM_EPSILON = np.float32(1e-5)
LOG2_E = np.float32(1 / math.log(2))
# ln 2 in two parts, the first so short that its small multiples are exact.
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(math.log(2) - 0.693359375)
# e^r for |r| <= ln(2) / 2, to a relative 1e-7: a polynomial through Chebyshev nodes.
E0, E1, E2, E3, E4, E5, E6 = np.array(
    [1.0, 1.00000004, 0.500000011, 0.166664155, 0.0416662183, 0.00837512889, 0.00139485808], np.float32
)
# erfc(z) = t exp(-z^2 + s C(s)) with t = 1 / (1 + z / 2) and s = 1 - t, to 2e-7: C through Chebyshev nodes.
C0, C1, C2, C3, C4, C5, C6, C7 = np.array(
    [
        -1.25675798,
        -0.30328424,
        0.162363475,
        0.187392486,
        0.0656975292,
        -0.0310577421,
        -0.209941911,
        0.120576628,
    ],
    np.float32,
)
ZERO, HALF, ONE, TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
ROOT_HALF, LEAST_EXPONENT = np.float32(math.sqrt(0.5)), np.float32(-87)

summing = partial(compiled, reordered=True)


@compiled
def vector_at(address, size):
    """Return the vector at an address."""
    return numba.carray(as_pointer(address), (size,), np.float32)  # pyrefly: ignore


@compiled
def matrix_at(address, rows, columns):
    """Return the matrix at an address."""
    return numba.carray(as_pointer(address), (rows, columns), np.float32)  # pyrefly: ignore


@compiled
def linear(weight, bias, x, y):
    """Write ``weight x + bias``; a bias at address 0 is none."""
    matrix = matrix_at(weight, y.size, x.size)
    for i in range(y.size):
        y[i] = inner(matrix[i], x)
    if bias:
        y += vector_at(bias, y.size)


@compiled
def kept_rows_linear(weight, bias, x, kept, y):
    """Write ``weight x + bias`` where ``kept``, and 0 elsewhere, whose weights are not read."""
    kept_rows(matrix_at(weight, y.size, x.size), x, kept, y)
    if bias:
        added = vector_at(bias, y.size)
        for i in range(y.size):
            y[i] += added[i] if kept[i] else ZERO


@summing
def layer_norm(x, weight, bias, y):
    """Write ``x`` with mean 0 and variance 1, scaled and moved."""
    width = np.float32(x.size)
    mean = ZERO
    for i in range(x.size):
        mean += x[i]
    mean /= width
    variance = ZERO
    for i in range(x.size):
        variance += (x[i] - mean) * (x[i] - mean)
    scale = ONE / np.sqrt(variance / width + NORM_EPSILON)
    factor = vector_at(weight, x.size)
    for i in range(x.size):
        y[i] = (x[i] - mean) * scale * factor[i]
    if bias:
        y += vector_at(bias, x.size)


@compiled
def exponentials(values, bits):
    """Replace values of at most about 0 by their exponentials; ``bits`` is scratch memory."""
    for i in range(values.size):
        x = max(values[i], LEAST_EXPONENT)
        n = np.floor(x * LOG2_E + HALF)
        r = x - n * LN2_HIGH - n * LN2_LOW
        values[i] = E0 + r * (E1 + r * (E2 + r * (E3 + r * (E4 + r * (E5 + r * E6)))))
        # The bits of the float 2^n.
        bits[i] = (np.int32(n) + np.int32(127)) << np.int32(23)
    values *= bits[: values.size].view(np.float32)


@compiled
def gelu(x, complement, bits):
    """Replace ``x`` by ``x (1 + erf(x / sqrt(2))) / 2``; the others are scratch memory."""
    for i in range(x.size):
        z = abs(x[i]) * ROOT_HALF
        s = z / (TWO + z)
        c = C0 + s * (C1 + s * (C2 + s * (C3 + s * (C4 + s * (C5 + s * (C6 + s * C7))))))
        complement[i] = s * c - z * z
    exponentials(complement, bits)
    for i in range(x.size):
        erfc = complement[i] / (ONE + HALF * abs(x[i]) * ROOT_HALF)
        x[i] = HALF * x[i] * (erfc if x[i] < ZERO else TWO - erfc)


@summing
def attend(qkv, heads, keys, values, past, out):
    """Remember a token's key and value, and write what its query mixes of all so far.

    Shape:
        qkv: (3 * width,); keys, values: (width, columns), of which ``past`` are there; out: (width,).
    """
    width, size = out.size, out.size // heads
    for channel in range(width):
        keys[channel, past] = qkv[width + channel]
        values[channel, past] = qkv[2 * width + channel]
    seen = past + 1
    scores, bits = np.empty(seen, np.float32), np.empty(seen, np.int32)
    scaling = ONE / np.sqrt(np.float32(size))
    for head in range(heads):
        scores[:] = ZERO
        for channel in range(head * size, (head + 1) * size):
            query, row = qkv[channel] * scaling, keys[channel]
            for t in range(seen):
                scores[t] += query * row[t]
        largest = scores[0]
        for t in range(seen):
            largest = max(largest, scores[t])
        for t in range(seen):
            scores[t] -= largest
        exponentials(scores, bits)
        total = ZERO
        for t in range(seen):
            total += scores[t]
        for channel in range(head * size, (head + 1) * size):
            out[channel] = inner(values[channel], scores) / total


@compiled
def learned_mask(gate, x, keys, values, past, qkv, kept):
    """Write whether ``0.5 cos(attention(x) + shift) + 0.5`` is at least one half."""
    mixed = np.empty_like(x)
    linear(gate[0], gate[1], x, qkv)
    attend(qkv, gate[GATE_HEADS], keys, values, past, mixed)
    shift = vector_at(gate[GATE_SHIFT], x.size)
    for i in range(x.size):
        kept[i] = HALF * np.cos(mixed[i] + shift[i]) + HALF >= HALF


@compiled
def masked_linear(gate, weight, bias, x, early, keys, values, past, qkv, y):
    """Write ``weight x + bias`` times its learned mask, if it has one.

    A mask that the embeddings give is there before the product, whose dropped rows are then left out.
    """
    if not gate[0]:
        linear(weight, bias, x, y)
        return
    kept = np.empty(y.size, np.bool_)
    if gate[GATE_EARLY]:
        learned_mask(gate, early, keys, values, past, qkv, kept)
        kept_rows_linear(weight, bias, x, kept, y)
        return
    linear(weight, bias, x, y)
    learned_mask(gate, y, keys, values, past, qkv, kept)
    for i in range(y.size):
        y[i] = y[i] if kept[i] else ZERO


@compiled
def read_token(shared, blocks, token, past, keys, values, logits):
    """Write the logits after one more token.

    Args:
        shared, blocks: tables of addresses and counts.
        token: its id.
        past: how many tokens were read before, and so its position.
        keys, values: what the attentions remember.
        logits: written.

    Shape:
        shared, blocks: one row, and a row for each block, of int64;
        keys, values: (MEMORIES * blocks + 1, width, columns); logits: (vocabulary,), all float32.
    """
    width, columns = keys.shape[1], keys.shape[2]
    x = (
        matrix_at(shared[TOKEN], logits.size, width)[token]
        + matrix_at(shared[POSITION], columns, width)[past]
    )
    normed, mixed, added, early = np.empty_like(x), np.empty_like(x), np.empty_like(x), np.empty_like(x)
    qkv, hidden = np.empty(3 * width, np.float32), np.empty(4 * width, np.float32)
    complement, bits = np.empty_like(hidden), np.empty(4 * width, np.int32)
    if shared[SOURCE_QKV]:
        linear(shared[SOURCE_QKV], shared[SOURCE_QKV + 1], x, qkv)
        attend(qkv, shared[SOURCE_HEADS], keys[-1], values[-1], past, mixed)
        linear(shared[SOURCE_PROJECTION], shared[SOURCE_PROJECTION + 1], mixed, early)
    for block in range(len(blocks)):
        at, m = blocks[block], MEMORIES * block
        layer_norm(x, at[ATTENTION_NORM], at[ATTENTION_NORM + 1], normed)
        linear(at[QKV], at[QKV + 1], normed, qkv)
        attend(qkv, at[HEADS], keys[m], values[m], past, mixed)
        gate, weight, bias = at[ATTENTION_GATE:], at[PROJECTION], at[PROJECTION + 1]
        masked_linear(gate, weight, bias, mixed, early, keys[m + 1], values[m + 1], past, qkv, added)
        x += added
        layer_norm(x, at[MLP_NORM], at[MLP_NORM + 1], normed)
        linear(at[EXPAND], at[EXPAND + 1], normed, hidden)
        gelu(hidden, complement, bits)
        gate, weight, bias = at[MLP_GATE:], at[CONTRACT], at[CONTRACT + 1]
        masked_linear(gate, weight, bias, hidden, early, keys[m + 2], values[m + 2], past, qkv, added)
        x += added
    layer_norm(x, shared[NORM], shared[NORM + 1], normed)
    linear(shared[TOKEN], 0, normed, logits)
