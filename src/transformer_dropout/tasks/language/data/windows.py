"""Which tokens a step trains on: pure functions of (seed, step), so a run resumes from nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from transformer_dropout.errors import InputError


@dataclass(frozen=True)
class Windows:
    """A stream of tokens seen as windows of ``context`` inputs that do not overlap.

    Args:
        tokens: one dimension; may be memory-mapped, and only the windows asked for are read.
        context: tokens a window.

    Raises:
        InputError: when the tokens do not fill one window.
    """

    tokens: np.ndarray
    context: int

    def __post_init__(self) -> None:
        available = len(self.tokens)
        if available < self.context + 1:
            raise InputError(
                f"The split has {available} tokens, but one window of context {self.context} takes "
                f"{self.context + 1}: use --set model.context={max(available - 1, 1)} or less, or more text"
            )

    def __len__(self) -> int:
        """Return the number of windows; the last tokens may fill none."""
        return (len(self.tokens) - 1) // self.context

    def inputs_and_targets(self, indices: Sequence[int] | np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the windows and, one token later, their targets.

        Args:
            indices: of n windows, each in ``range(len(self))``.

        Shape:
            two int64 tensors of (n, context).

        Raises:
            IndexError: when there is no such window.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise IndexError(f"window {chosen.min()} to {chosen.max()} asked for, there are {len(self)}")
        offsets = chosen[:, None] * self.context + np.arange(self.context + 1)
        # asarray drops the memmap subclass, whose indexing is slower; nothing is read before the indexing.
        block = torch.from_numpy(np.asarray(self.tokens)[offsets].astype(np.int64))
        return block[:, :-1].contiguous(), block[:, 1:].contiguous()


@lru_cache(maxsize=4)  # a step asks for the epoch it is in, and at an epoch's end for the next
def epoch_order(n_windows: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of the windows in one epoch, a read-only permutation of ``range(n_windows)``.

    Args:
        n_windows: how many there are.
        seed: 0 or more; another seed gives another order.
        epoch: counted from 0.
    """
    # Raw bits sorted, not Generator.permutation: NumPy promises only the bits to stay the same.
    bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(epoch,))).random_raw(n_windows)
    order = np.argsort(bits, kind="stable")
    order.setflags(write=False)
    return order


def batch_indices(n_windows: int, batch: int, step: int, seed: int) -> np.ndarray:
    """Return the windows of one global batch, drawn without replacement in each epoch.

    The epochs' orders follow one another as one stream; batch number ``step`` is
    ``stream[step * batch : (step + 1) * batch]``, so an epoch may end inside a batch. A rank takes a slice.

    Args:
        n_windows: how many there are.
        batch: windows a step, over all ranks and accumulation steps.
        step: counted from 0.
        seed: of the data order.

    Shape:
        (batch,) int64.
    """
    position, end = step * batch, (step + 1) * batch
    parts = []
    while position < end:
        epoch, start = divmod(position, n_windows)
        stop = min(n_windows, start + end - position)
        parts.append(epoch_order(n_windows, seed, epoch)[start:stop])
        position += stop - start
    return np.concatenate(parts)


def fixed_probe(n_windows: int, count: int, seed: int) -> np.ndarray:
    """Return ``count`` evenly spread windows, sorted, all of them when there are not that many.

    Args:
        n_windows: how many there are.
        count: how many to take.
        seed: shifts the even grid.
    """
    count = min(count, n_windows)
    shift = np.random.PCG64(np.random.SeedSequence(seed)).random_raw() % n_windows
    return (np.arange(count, dtype=np.int64) * n_windows + shift) // count
