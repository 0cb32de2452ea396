"""Counter-based random numbers: a function of a key and an element's index, so that no noise is stored.

The same key gives the same numbers whatever the tiling, the thread count or the implementation; see
`native.random` for the same bits in a native loop.
"""

import torch
from torch import Tensor

STEP = 0x9E3779B9
FIRST_FACTOR = 0x21F0AAAD
SECOND_FACTOR = 0x735A2D97
# What one thread's cache holds of a chain of elementwise operations.
CHUNK = 131072


def draw_key(device: torch.device | str = "cpu") -> Tensor:
    """Draw a key from torch's generator of a device: two 32-bit words.

    The key is a tensor and not two numbers, so that a CUDA graph draws a fresh one at each replay. Both words
    are drawn, never counted up: numbers of two keys that share the first word and differ little in the second
    are alike.

    Shape:
        result: (2,), int32.
    """
    return torch.randint(-(2**31), 2**31, (2,), dtype=torch.int32, device=device)


def steps(count: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the index times ``STEP`` of the first elements, for a caller who goes by chunks to make once.

    Shape:
        result: (count,), int32.
    """
    return torch.arange(count, dtype=torch.int32, device=device).mul_(signed(STEP))


def random_bits(key: Tensor, count: int, start: int = 0, made: Tensor | None = None) -> Tensor:
    """Return 32 random bits for each of the elements ``start`` to ``start + count - 1``.

    Formula, in 32-bit arithmetic that wraps, with logical shifts::

        x = i * 0x9E3779B9 + key[0];  x ^= x >> 16;  x *= 0x21F0AAAD;  x ^= key[1];
        x ^= x >> 15;  x *= 0x735A2D97;  x ^= x >> 15

    Args:
        key: of ``draw_key``.
        count: how many elements.
        start: index of the first one, so that a caller may go by chunks.
        made: of ``steps``, as many or more; made here by default.

    Shape:
        result: (count,), int32.

    Reference: the integer hash found by search in https://github.com/skeeto/hash-prospector/issues/19.
    """
    first, second = key.unbind()
    if start:
        first = first + signed(start * STEP)
    x = (steps(count, key.device) if made is None else made[:count]) + first
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    x *= FIRST_FACTOR
    x ^= second
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    x *= SECOND_FACTOR
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    return x


def uniform(key: Tensor, count: int, start: int = 0, made: Tensor | None = None) -> Tensor:
    """Return numbers of [0, 1) in steps of 2^-24, from the upper 24 of the ``random_bits``.

    Args:
        key, count, start, made: as of ``random_bits``.

    Shape:
        result: (count,), float32.
    """
    upper = (random_bits(key, count, start, made) >> 8).bitwise_and_(0xFFFFFF)
    return upper.to(torch.float32).mul_(2.0**-24)


def signed(word: int) -> int:
    """Return the int32 with the lowest 32 bits of a number."""
    return (word + 2**31) % 2**32 - 2**31
