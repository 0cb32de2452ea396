"""The mask operation of `kernels.mask` as native loops: one bit per element is kept for the backward."""

import numba
import numpy as np
import torch
from numba.extending import overload
from torch import Tensor

from ._compiled import compiled
from .random import element_uniform, key_words

# Of a penalty with the value M (a M + b) in each element.
COEFFICIENTS = {"squared": (0.5, 0.0), "linear": (0.0, 1.0), None: (0.0, 0.0)}
ROWS = 32
NO_KEY = np.uint32(0), np.uint32(0)
# Above it lies one half and nothing between.
BELOW_HALF = np.nextafter(np.float32(0.5), np.float32(0))

# u = n pi + v with |v| <= pi / 2. Fitted at Chebyshev's points, in powers of v^2: sin^2(v / 2) / v^2 and
# sin(v) / (2 v), both closer than a rounding of float32.
SQUARE = tuple(map(np.float32, (0.25, -0.02083333023, 0.00069443259, -1.23872896e-05, 1.3148723e-07)))
SLOPE = tuple(map(np.float32, (0.5, -0.08333329111, 0.00416652532, -9.90451081e-05, 1.30255376e-06)))
INVERSE_PI, HALF_PI = np.float32(1 / np.pi), np.float32(np.pi / 2)
PI, PI_REST = np.float32(np.pi), np.float32(np.pi - np.float64(np.float32(np.pi)))
# Adding 1.5 * 2^23 rounds a float32 to an integer, which is then its lowest bits.
ROUND = np.float32(1.5 * 2**23)


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
def reduced(gate, shift):
    """Return ``u = gate + shift`` less the nearest multiple of pi, and whether that is an odd one."""
    u = gate + shift
    rounded = np.float32(u * INVERSE_PI + ROUND)
    multiple = rounded - ROUND
    rest = (u - multiple * PI) - multiple * PI_REST
    # Numbers without a fraction leave any rest; NaN stays NaN.
    rest = HALF_PI if rest > HALF_PI else rest
    rest = -HALF_PI if rest < -HALF_PI else rest
    return rest, (rounded.view(np.uint32) & np.uint32(1)) != 0


@numba.njit(inline="always")
def polynomial(z, c):
    return c[0] + z * (c[1] + z * (c[2] + z * (c[3] + z * c[4])))


@numba.njit(inline="always")
def keep_probability(rest, odd):
    """Return ``M = cos^2(u / 2)``."""
    square = rest * rest
    part = square * polynomial(square, SQUARE)
    return part if odd else np.float32(1) - part


@numba.njit(inline="always")
def slope(rest, odd):
    """Return ``dM/du = -sin(u) / 2``."""
    return (rest if odd else -rest) * polynomial(rest * rest, SLOPE)


@compiled
def mask_rows(x, gate, shift, weight, first, second, drawn, a, b, y, words, totals):
    """Mask each row, drawn or by threshold; the mask of row r is bit r % 32 of the words in line r // 32."""
    rows, width = x.shape
    probability, sums = np.empty(width, np.float32), np.empty(width, np.float32)
    # Short loops over the channels, each with few arrays: the compiler turns those into vector code.
    for group in range(words.shape[0]):
        line = words[group]
        line[:], sums[:] = 0, 0
        for row in range(group * ROWS, min(rows, group * ROWS + ROWS)):
            x_row, gate_row, y_row = x[row], gate[row], y[row]
            for c in range(width):
                rest, odd = reduced(widened(gate_row[c]), shift[c])
                probability[c] = keep_probability(rest, odd)
            start, bit = np.uint32(row) * np.uint32(width), np.int32(row % ROWS)
            for c in range(width):
                noise = element_uniform(start + np.uint32(c), first, second) if drawn else BELOW_HALF
                kept = probability[c] > noise
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
def mask_at_threshold(x, gate, shift, y):
    """Keep where M is at least one half: where the multiple of pi nearest to the angle is even."""
    rows, width = x.shape
    for row in range(rows):
        x_row, gate_row, y_row = x[row], gate[row], y[row]
        for c in range(width):
            rest, odd = reduced(widened(gate_row[c]), shift[c])
            kept = (np.float32(0) if odd else np.float32(1)) + np.float32(0) * rest
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
                rest, odd = reduced(widened(gate_row[c]), shift[c])
                task = widened(dy_row[c]) * widened(x_row[c])
                chain[c] = (task + (row_a * keep_probability(rest, odd) + row_b)) * slope(rest, odd)
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
    *,
    keep: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the output, the words that hold the mask, and the sum of the penalty."""
    y, width = torch.empty_like(x), x.shape[-1]
    arrays = as_array(x), as_array(gate), parameter_array(shift)
    if key is None and penalty is None and not keep:
        mask_at_threshold(*arrays, as_array(y))
        return y, None, None
    words = torch.empty(-(-x.numel() // (width * ROWS)), width, dtype=torch.int32)
    totals = np.zeros(width)
    mask_rows(
        *arrays,
        row_weights(weight),
        *(NO_KEY if key is None else key_words(key)),
        key is not None,
        *map(np.float32, COEFFICIENTS[penalty]),
        as_array(y),
        words.numpy(),
        totals,
    )
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
    each = 0.0 if scale is None else scale.item()
    x_gradient, gate_gradient = torch.empty_like(x), torch.empty_like(gate)
    shift_gradient = np.zeros(x.shape[-1])
    backward(
        *map(as_array, (y_gradient, x, gate)),
        parameter_array(shift),
        row_weights(weight),
        words.numpy(),
        np.float32(2 * a * each),
        np.float32(b * each),
        as_array(x_gradient),
        as_array(gate_gradient),
        shift_gradient,
    )
    return x_gradient, gate_gradient, torch.from_numpy(shift_gradient).to(shift.dtype)


def mask_of(words: Tensor, x: Tensor, gate: Tensor, shift: Tensor) -> Tensor:
    """Return the mask that the words hold, as booleans, for a backward in pure PyTorch."""
    bits = words[:, None] >> torch.arange(ROWS, dtype=torch.int32)[:, None]
    return bits.bitwise_and_(1).flatten(0, 1)[: x.numel() // x.shape[-1]].to(torch.bool)


def as_array(tensor: Tensor) -> np.ndarray:
    """Return a tensor's memory as rows of channels; bfloat16 as the int16 with the same bits."""
    tensor = tensor.detach().view(-1, tensor.shape[-1])
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def parameter_array(parameter: Tensor) -> np.ndarray:
    """Return a copy of a parameter: FSDP could not free memory that NumPy has seen."""
    return parameter.detach().float().clone().numpy()


def row_weights(weight: Tensor | None) -> np.ndarray:
    """Return the weights of the rows; none stands for ones."""
    return np.empty(0, np.float32) if weight is None else weight.numpy()
