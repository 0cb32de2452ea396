"""Sentences as padded batches of token ids, in an order that the seed alone decides."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .sentences import Sentence

# Sentences in one forward of an evaluation.
EVALUATED_TOGETHER = 64
# Batches of training whose sentences are sorted by length together.
POOLED = 8


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some sentences, padded to the longest.

    Attributes:
        inputs: ``input_ids`` and ``attention_mask``, each (sentences, tokens).
        labels: (sentences,).
    """

    inputs: dict[str, Tensor]
    labels: Tensor

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.inputs["attention_mask"].sum())


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

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the sentences with these indices."""
        rows = [torch.tensor(self.ids[index]) for index in indices]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.pad, padding_side=self.side)
        ones = [torch.ones(len(row), dtype=torch.long) for row in rows]
        mask = pad_sequence(ones, batch_first=True, padding_side=self.side)
        labels = torch.tensor([self.labels[index] for index in indices])
        return Batch(inputs={"input_ids": ids, "attention_mask": mask}, labels=labels)

    def by_length(self) -> list[list[int]]:
        """Return the indices in groups of about equal length, so that an evaluation pads little."""
        order = sorted(range(len(self)), key=lambda index: (len(self.ids[index]), index))
        return [order[at : at + EVALUATED_TOGETHER] for at in range(0, len(order), EVALUATED_TOGETHER)]

    def probe(self, size: int) -> "Encoded":
        """Return fixed sentences, evenly spread."""
        count = min(size, len(self))
        indices = [at * len(self) // count for at in range(count)]
        ids, labels = [self.ids[index] for index in indices], [self.labels[index] for index in indices]
        return replace(self, ids=ids, labels=labels)


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


def steps_per_epoch(sentences: int, batch: int) -> int:
    """Return how many steps see every sentence once."""
    return -(-sentences // batch)


def batch_indices(lengths: Sequence[int], batch: int, step: int, seed: int) -> list[int]:
    """Return the sentences of one step: each epoch is a new shuffle of all of them.

    Within some batches' worth of shuffled sentences those of similar length come together, and then the
    batches are shuffled: real sentences would else be padded to twice their length.

    Args:
        lengths: tokens of every sentence.
        batch: sentences in a step; one step of an epoch takes what is left over.
        step: counted from 0 over the whole training.
        seed: of the shuffles.
    """
    epoch, at = divmod(step, steps_per_epoch(len(lengths), batch))
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    pools = [order[i : i + POOLED * batch] for i in range(0, len(order), POOLED * batch)]
    grouped = [index for pool in pools for index in sorted(pool, key=lengths.__getitem__)]
    batches = torch.randperm(steps_per_epoch(len(lengths), batch), generator=generator).tolist()
    first = batches[at] * batch
    return grouped[first : first + batch]
