"""Whether runs saw the same data, without which their losses do not compare."""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

# Losses compare only over the same items of the same vocabulary.
SAME_DATA = ("train_sha256", "validation_sha256", "test_sha256", "vocabulary_size")


def other_data(named: Iterable[tuple[str, Mapping[str, Any]]]) -> tuple[str, str, str] | None:
    """Return the names of two whose data differ, and the key that says so; None where all are the same.

    Args:
        named: names, each with the data section of a record; what a section lacks is not compared.
    """
    named = list(named)
    for key in SAME_DATA:
        known = [(name, data[key]) for name, data in named if data.get(key) is not None]
        for (first, one), (second, other) in pairwise(known):
            if one != other:
                return first, second, key
    return None
