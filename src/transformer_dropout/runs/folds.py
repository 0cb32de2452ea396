"""Cross-validation: the training examples in parts, each in turn held out to validate on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import InputError
from .order import epoch_order
from .task import Batch, Splits, Task


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some examples of a split.

    Attributes:
        split: the task's split.
        indices: which of its examples.
    """

    split: Any
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)


def part_of(split: Any, indices: np.ndarray) -> Part:
    """Return some examples of a split, or of a part of one."""
    if isinstance(split, Part):
        return Part(split=split.split, indices=split.indices[indices])
    return Part(split=split, indices=indices)


def folded(splits: Splits, folds: int, fold: int) -> Splits:
    """Return splits that train on all parts of the training split but one, and validate on that one.

    Args:
        splits: the task's.
        folds: how many parts, which are the same for every run; 0 leaves the splits as they are.
        fold: which of them is held out, counted from 0.

    Raises:
        InputError: when there are fewer examples than parts.
    """
    if not folds:
        return splits
    if len(splits.train) < folds:
        raise InputError(f"There are {len(splits.train)} training examples for {folds} folds; take fewer.")
    order = epoch_order(len(splits.train), 0, 0)
    held = np.arange(len(order)) % folds == fold
    parts = [part_of(splits.train, np.sort(order[mask])) for mask in (~held, held)]
    return replace(splits, train=parts[0], validation=parts[1], test=None)


def even_part(split: Any) -> Part:
    """Return a split without its last example where their number is odd.

    Raises:
        InputError: when there are fewer than two.
    """
    if len(split) < 2:
        raise InputError("training.cross_fit needs two training examples or more.")
    return part_of(split, np.arange(len(split) // 2 * 2))


def batch_of(task: Task, split: Any, indices: Sequence[int] | np.ndarray) -> Batch:
    """Return examples of a split, or of a part of one, as one batch."""
    if isinstance(split, Part):
        return task.batch(split.split, split.indices[np.asarray(indices)])
    return task.batch(split, indices)


def whole(split: Any) -> Any:
    """Return the task's own split behind a part of it."""
    return split.split if isinstance(split, Part) else split
