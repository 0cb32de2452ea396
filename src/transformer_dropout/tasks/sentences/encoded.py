"""Sentences as token ids, in batches that pad little."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...runs.order import epoch_order
from .examples import Sentence

# Batches of training whose sentences are sorted by length together.
POOLED = 8


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Sentences as token ids.

    Attributes:
        ids: of each sentence, as long as it is.
        labels: its class.
        pad: the id that fills up a batch.
        side: where it does.
    """

    ids: list[list[int]]
    labels: list[int]
    pad: int
    side: str

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sentence."""
        return list(map(len, self.ids))

    def padded(self, indices: Sequence[int] | np.ndarray) -> tuple[dict[str, Tensor], Tensor]:
        """Return ``input_ids`` and ``attention_mask`` of (sentences, tokens), and the labels."""
        rows = [torch.tensor(self.ids[index]) for index in indices]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.pad, padding_side=self.side)
        ones = [torch.ones(len(row), dtype=torch.long) for row in rows]
        mask = pad_sequence(ones, batch_first=True, padding_side=self.side)
        labels = torch.tensor([self.labels[index] for index in indices])
        return {"input_ids": ids, "attention_mask": mask}, labels


def encode(sentences: Sequence[Sentence], tokenizer: Any, max_tokens: int) -> Encoded:
    """Return sentences as token ids.

    Args:
        sentences: the sentences.
        tokenizer: a tokenizer of transformers.
        max_tokens: longer sentences are cut.
    """
    texts = [sentence.text for sentence in sentences]
    return Encoded(
        ids=tokenizer(texts, truncation=True, max_length=max_tokens)["input_ids"],
        labels=[sentence.label for sentence in sentences],
        pad=int(tokenizer.pad_token_id),
        side=tokenizer.padding_side,
    )


def by_length(encoded: Encoded) -> Encoded:
    """Return the same sentences sorted by length, so that an evaluation pads little."""
    order = sorted(range(len(encoded)), key=lambda index: (len(encoded.ids[index]), index))
    return Encoded(
        ids=[encoded.ids[index] for index in order],
        labels=[encoded.labels[index] for index in order],
        pad=encoded.pad,
        side=encoded.side,
    )


def grouped_order(lengths: Sequence[int], batch: int, seed: int, epoch: int) -> np.ndarray:
    """Return a shuffle of all sentences in which those of one batch are of similar length.

    Within some batches' worth of shuffled sentences those of similar length come together, and then the
    batches are shuffled: real sentences would else be padded to twice their length. A batch that is not full
    comes last.

    Args:
        lengths: tokens of every sentence.
        batch: sentences in a step.
        seed: of the shuffles.
        epoch: counted from 0; each has an order of its own.
    """
    order = epoch_order(len(lengths), seed, epoch).tolist()
    pools = [order[at : at + POOLED * batch] for at in range(0, len(order), POOLED * batch)]
    grouped = [index for pool in pools for index in sorted(pool, key=lengths.__getitem__)]
    full = len(lengths) // batch
    batches = [grouped[at * batch : (at + 1) * batch] for at in epoch_order(max(1, full), seed, epoch)]
    left = grouped[full * batch :] if full else []
    return np.array([index for part in batches for index in part] + left, dtype=np.int64)
