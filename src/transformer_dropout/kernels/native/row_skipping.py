"""Products of a matrix and one vector that leave out rows, as native loops over contiguous rows."""

from functools import partial

import numpy as np

from ._compiled import compiled

ZERO = np.float32(0)


@partial(compiled, reordered=True)
def inner(row, x):
    """Return the inner product of a row and a vector."""
    total = ZERO
    for j in range(x.size):
        total += row[j] * x[j]
    return total


@compiled
def kept_rows(weight, x, kept, y):
    """Write the inner product of ``x`` with each kept row, and 0 for the others, which are not read."""
    for i in range(y.size):
        y[i] = inner(weight[i], x) if kept[i] else ZERO


@compiled
def kept_columns(weight, x, kept, y):
    """Write the inner product of each row with ``x``, over the kept blocks; the others are not read."""
    block = x.size // kept.size
    for i in range(y.size):
        row, total = weight[i], ZERO
        for b in range(kept.size):
            if kept[b]:
                units = slice(b * block, (b + 1) * block)
                total += inner(row[units], x[units])
        y[i] = total
