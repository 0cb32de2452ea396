"""A stream of tokens as windows of inputs and targets."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from transformer_dropout.errors import InputError


@dataclass(frozen=True)
class Windows:
    """A stream of tokens seen as windows of ``context`` inputs that do not overlap.

    Args:
        tokens: one dimension; may be memory-mapped, and only the windows asked for are read.
        context: tokens per window.

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
