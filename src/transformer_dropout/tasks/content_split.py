"""Splits that depend on what an example is, never on a run's seed or on the order of a file."""

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np


def split_by_content(examples: Iterable[bytes], shares: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Return the indices of each split's examples, in an order that is as good as random.

    An example lies where the hash of its bytes says: equal ones never lie on both sides, a shuffled file is
    split alike, and the first examples of a split are the same however many are taken.

    Args:
        examples: one after another, as bytes.
        shares: a share of the examples for each split's name; they add up to 1.
    """
    keys = np.array([key_of(example) for example in examples], dtype=np.uint64)
    order = np.argsort(keys, kind="stable")
    bounds = np.cumsum(list(shares.values())) * 2.0**64
    parts = np.searchsorted(bounds[:-1], keys[order].astype(np.float64), side="right")
    return {name: order[parts == part] for part, name in enumerate(shares)}


def key_of(example: bytes) -> int:
    """Return the first 64 bits of an example's SHA-256."""
    return int.from_bytes(hashlib.sha256(example).digest()[:8], "big")
