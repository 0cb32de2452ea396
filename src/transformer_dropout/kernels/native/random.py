"""The counter-based random numbers of `kernels.random`, bit by bit, for native loops."""

import numba
import numpy as np
from torch import Tensor

from ..random import FIRST_FACTOR, SECOND_FACTOR, STEP


@numba.njit(inline="always")
def element_bits(index, first, second):
    """Return the 32 random bits of one element, as uint32.

    Args:
        index: of the element, any integer.
        first, second: the words of ``key_words``.
    """
    # Each step is cast back: numba computes the product of two uint32 in 64 bits.
    x = np.uint32(np.uint32(np.uint32(index) * np.uint32(STEP)) + first)
    x ^= x >> np.uint32(16)
    x = np.uint32(x * np.uint32(FIRST_FACTOR)) ^ second
    x ^= x >> np.uint32(15)
    x = np.uint32(x * np.uint32(SECOND_FACTOR))
    return np.uint32(x ^ (x >> np.uint32(15)))


@numba.njit(inline="always")
def element_uniform(index, first, second):
    """Return the number of [0, 1) of one element, as float32; the arguments of ``element_bits``."""
    # A signed integer turns into a float in one vector instruction on every processor.
    upper = np.int32(element_bits(index, first, second) >> np.uint32(8))
    return np.float32(upper) * np.float32(2.0**-24)


def key_words(key: Tensor) -> tuple[np.uint32, np.uint32]:
    """Return the two words of a key as native loops take them."""
    first, second = key.tolist()
    return np.uint32(first & 0xFFFFFFFF), np.uint32(second & 0xFFFFFFFF)
