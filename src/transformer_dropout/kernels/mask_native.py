"""The mask operation of `mask` as native loops: one bit an element is kept for the backward."""

import numba
import numpy as np
import torch
from numba.extending import overload
from torch import Tensor

from ._compiled import compiled
from .random_native import element_uniform, key_words

# Of a penalty with the value M (a M + b) in each element.
COEFFICIENTS = {"squared": (0.5, 0.0), "linear": (0.0, 1.0), None: (0.0, 0.0)}
ROWS = 32

# sin(v) = v + v^3 P(v^2) and cos(v) = 1 + v^2 Q(v^2) for |v| <= pi / 2, fitted at Chebyshev's points; the
# error of both lies below a rounding of float32.
SINE = tuple(map(np.float32, (-0.1666666716, 0.0083333328, -0.00019841085, 2.7536435e-06, -2.407964e-08)))
COSINE = tuple(map(np.float32, (-0.5, 0.04166666046, -0.00138886517, 2.4774588e-05, -2.6297667e-07)))
TURNS = np.float32(1 / (2 * np.pi))
TURN, TURN_REST = np.float32(2 * np.pi), np.float32(2 * np.pi - np.float64(np.float32(2 * np.pi)))
QUARTER = np.float32(np.pi / 2)


def widened(value):
    """Return a number as float32; an int16 stands for the bits of a bfloat16."""
    raise NotImplementedError  # compiled code only


@overload(widened)
def _widened(value):
    if isinstance(value, numba.types.Integer):
        return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)
    return lambda value: value


def narrowed(value, array):
    """Return a float32 as an element of an array, rounded to nearest where that holds bfloat16."""
    raise NotImplementedError  # compiled code only


@overload(narrowed)
def _narrowed(value, array):
    if not isinstance(array.dtype, numba.types.Integer):
        return lambda value, array: value

    def rounded(value, array):
        bits = np.float32(value).view(np.uint32)
        odd = np.uint32((bits >> np.uint32(16)) & np.uint32(1))
        sum_ = np.uint32(bits + np.uint32(0x7FFF) + odd)
        # The sum alone would turn some NaN into another number.
        return np.int16((sum_ if value == value else np.uint32(0x7FC00000)) >> np.uint32(16))

    return rounded


@numba.njit(inline="always")
def half_angle(gate, shift):
    """Return half of ``gate + shift``, less whole turns: in [-pi / 2, pi / 2], or NaN."""
    angle = gate + shift
    turns = np.rint(angle * TURNS)
    half = np.float32(0.5) * ((angle - turns * TURN) - turns * TURN_REST)
    half = QUARTER if half > QUARTER else half
    return -QUARTER if half < -QUARTER else half


@numba.njit(inline="always")
def sine(half):
    z = half * half
    p = SINE[0] + z * (SINE[1] + z * (SINE[2] + z * (SINE[3] + z * SINE[4])))
    return half + half * z * p


@numba.njit(inline="always")
def cosine(half):
    z = half * half
    return np.float32(1) + z * (
        COSINE[0] + z * (COSINE[1] + z * (COSINE[2] + z * (COSINE[3] + z * COSINE[4])))
    )


@compiled
def sample(x, gate, shift, weight, first, second, a, b, y, words, totals):
    """Mask each row with a drawn mask; row r's is bit r % 32 of the words in line r // 32."""
    rows, width = x.shape
    probability, sums = np.empty(width, np.float32), np.empty(width, np.float32)
    # Short loops over the channels, each with few arrays: the compiler turns those into vector code.
    for group in range(words.shape[0]):
        line = words[group]
        line[:], sums[:] = 0, 0
        for row in range(group * ROWS, min(rows, group * ROWS + ROWS)):
            x_row, gate_row, y_row = x[row], gate[row], y[row]
            for c in range(width):
                root = cosine(half_angle(widened(gate_row[c]), shift[c]))
                probability[c] = root * root
            start, bit = np.uint32(row) * np.uint32(width), np.int32(row % ROWS)
            for c in range(width):
                kept = probability[c] > element_uniform(start + np.uint32(c), first, second)
                # NaN stays NaN.
                kept_as_float = np.float32(kept) + np.float32(0) * probability[c]
                y_row[c] = narrowed(widened(x_row[c]) * kept_as_float, y_row)
                line[c] |= np.int32(kept) << bit
            scale = weight[row] if weight.size else np.float32(1)
            for c in range(width):
                sums[c] += scale * (probability[c] * (a * probability[c] + b))
        for c in range(width):
            totals[c] += sums[c]


@compiled
def threshold(x, gate, shift, y):
    """Keep where the probability is at least one half, which is where the cosine is not negative."""
    rows, width = x.shape
    for row in range(rows):
        x_row, gate_row, y_row = x[row], gate[row], y[row]
        for c in range(width):
            root = cosine(half_angle(widened(gate_row[c]), shift[c]))
            probability = root * root
            kept = np.float32(probability >= np.float32(0.5)) + np.float32(0) * probability
            y_row[c] = narrowed(widened(x_row[c]) * kept, y_row)


@compiled
def backward(dy, x, gate, shift, weight, words, a, b, dx, dgate, dshift):
    """Write the gradients; a and b are the coefficients of the penalty's derivative ``a M + b``."""
    rows, width = x.shape
    chain, sums = np.empty(width, np.float32), np.empty(width, np.float32)
    for group in range(words.shape[0]):
        line = words[group]
        sums[:] = 0
        for row in range(group * ROWS, min(rows, group * ROWS + ROWS)):
            dy_row, x_row, gate_row, dx_row, dgate_row = dy[row], x[row], gate[row], dx[row], dgate[row]
            bit = np.int32(row % ROWS)
            for c in range(width):
                kept = np.float32((line[c] >> bit) & np.int32(1))
                dx_row[c] = narrowed(widened(dy_row[c]) * kept, dx_row)
            scale = weight[row] if weight.size else np.float32(1)
            row_a, row_b = scale * a, scale * b
            for c in range(width):
                half = half_angle(widened(gate_row[c]), shift[c])
                root = cosine(half)
                task = widened(dy_row[c]) * widened(x_row[c])
                chain[c] = (task + (row_a * (root * root) + row_b)) * (-sine(half) * root)
            for c in range(width):
                sums[c] += chain[c]
                dgate_row[c] = narrowed(chain[c], dgate_row)
        for c in range(width):
            dshift[c] += sums[c]


def masked(
    x: Tensor,
    gate: Tensor,
    shift: Tensor,
    key: Tensor | None,
    penalty: str | None,
    weight: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the output, the words that hold the mask, and the sum of the penalty."""
    y, width = torch.empty_like(x), x.shape[-1]
    arrays = as_array(x), as_array(gate), shift.detach().float().numpy()
    if key is None:
        threshold(*arrays, as_array(y))
        return y, None, None
    words = torch.empty(-(-x.numel() // (width * ROWS)), width, dtype=torch.int32)
    totals = np.zeros(width)
    coefficients = map(np.float32, COEFFICIENTS[penalty])
    sample(*arrays, row_weights(weight), *key_words(key), *coefficients, as_array(y), words.numpy(), totals)
    return y, words, None if penalty is None else torch.tensor(totals.sum(), dtype=torch.float32)


def gradients(
    y_gradient: Tensor,
    scale: Tensor | None,
    x: Tensor,
    gate: Tensor,
    shift: Tensor,
    words: Tensor,
    penalty: str | None,
    weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of ``x``, ``gate`` and ``shift``."""
    a, b = COEFFICIENTS[penalty]
    scale = 0.0 if scale is None else scale.item()
    x_gradient, gate_gradient = torch.empty_like(x), torch.empty_like(gate)
    shift_gradient = np.zeros(x.shape[-1])
    backward(
        *map(as_array, (y_gradient, x, gate)),
        shift.detach().float().numpy(),
        row_weights(weight),
        words.numpy(),
        np.float32(2 * a * scale),
        np.float32(b * scale),
        as_array(x_gradient),
        as_array(gate_gradient),
        shift_gradient,
    )
    return x_gradient, gate_gradient, torch.from_numpy(shift_gradient).to(shift.dtype)


def as_array(tensor: Tensor) -> np.ndarray:
    """Return a tensor's memory as rows of channels; bfloat16 as the int16 with the same bits."""
    tensor = tensor.detach().view(-1, tensor.shape[-1])
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def row_weights(weight: Tensor | None) -> np.ndarray:
    """Return the weights of the rows; none stands for ones."""
    return np.empty(0, np.float32) if weight is None else weight.numpy()
