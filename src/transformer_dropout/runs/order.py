"""Which examples a step trains on: pure functions of (seed, step), so a run resumes from nothing."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=4)  # a step asks for the epoch it is in, and at an epoch's end for the next
def epoch_order(examples: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of the examples in one epoch, a read-only permutation of ``range(examples)``.

    Args:
        examples: how many there are.
        seed: 0 or more; another seed gives another order.
        epoch: counted from 0.
    """
    # Raw bits sorted, not Generator.permutation: NumPy promises only the bits to stay the same.
    bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(epoch,))).random_raw(examples)
    order = np.argsort(bits, kind="stable")
    order.setflags(write=False)
    return order


@lru_cache(maxsize=4)
def alternating_order(examples: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of one epoch in which examples of two halves alternate; the halves stay over epochs.

    Args:
        examples: how many there are, an even number.
        seed, epoch: as of `epoch_order`.
    """
    halves = epoch_order(examples, seed, 0).reshape(2, -1)
    orders = [epoch_order(examples // 2, seed, 2 * epoch + half + 1) for half in range(2)]
    order = np.stack([half[own] for half, own in zip(halves, orders, strict=True)], axis=1).ravel()
    order.setflags(write=False)
    return order


Order = Callable[[int, int, int], np.ndarray]


def batch_indices(examples: int, batch: int, step: int, seed: int, order: Order = epoch_order) -> np.ndarray:
    """Return the examples of one global batch, drawn without replacement in each epoch.

    The epochs' orders follow one another as one stream; batch number ``step`` is
    ``stream[step * batch : (step + 1) * batch]``, so an epoch may end inside a batch. A rank takes a slice.

    Args:
        examples: how many there are.
        batch: examples per step, over all ranks and accumulation steps.
        step: counted from 0.
        seed: of the data order.
        order: gives the order of an epoch from (examples, seed, epoch), as `epoch_order` does.

    Shape:
        (batch,) int64.
    """
    position, end = step * batch, (step + 1) * batch
    parts = []
    while position < end:
        epoch, start = divmod(position, examples)
        stop = min(examples, start + end - position)
        parts.append(order(examples, seed, epoch)[start:stop])
        position += stop - start
    return np.concatenate(parts)


def fixed_probe(examples: int, count: int, seed: int) -> np.ndarray:
    """Return ``count`` evenly spread examples, sorted, all of them when there are not that many.

    Args:
        examples: how many there are.
        count: how many to take.
        seed: shifts the even grid.
    """
    count = min(count, examples)
    shift = np.random.PCG64(np.random.SeedSequence(seed)).random_raw() % examples
    return (np.arange(count, dtype=np.int64) * examples + shift) // count
