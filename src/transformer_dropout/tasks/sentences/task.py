"""Sentences of two or more classes, on a pre-trained encoder with a new classifier on top."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InputError
from ...recipe import Recipe
from ...runs.dataclass_from_data import dataclass_from_data
from ...runs.task import ACCURACY, LOSS, Batch, Splits
from .. import _pretrained as pretrained
from .arms import default_arms
from .encoded import Encoded, by_length, encode, grouped_order
from .examples import digest, prepared_splits

USES = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class SentenceModel:
    """Which pre-trained model.

    Attributes:
        source: its folder, or the name of the package that carries one.
        max_tokens: longer sentences are cut.
    """

    source: str = pretrained.PACKAGED
    max_tokens: int = 128

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InputError(f"model.max_tokens is {self.max_tokens}, but it must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class SentenceData:
    """Which sentences.

    Attributes:
        classes: by class, its file of one sentence per line.
        train_sentences: how many to train on, balanced by class; None for all.
    """

    classes: dict[str, str] = field(default_factory=dict)
    train_sentences: int | None = None

    def __post_init__(self) -> None:
        if self.train_sentences is not None and self.train_sentences < 1:
            raise InputError(
                f"data.train_sentences is {self.train_sentences}, but it must be at least 1, or null for all."
            )


@dataclass(frozen=True, kw_only=True)
class SentenceSplits(Splits):
    """Encoded sentences, with what a classifier of them is made from."""

    folder: Path
    classes: int
    tokenizer: Any


class Sentences:
    """A pre-trained encoder, fine-tuned to tell classes of sentences apart."""

    item = "sentence"
    metrics = (LOSS, ACCURACY)
    Model = SentenceModel
    Data = SentenceData

    def prepare(self, model: SentenceModel, data: SentenceData, cache: Path | None) -> SentenceSplits:
        """Return sentences that a hash of their words has split 80/10/10, as token ids."""
        files = {name: Path(path) for name, path in data.classes.items()}
        splits = prepared_splits(files, data.train_sentences)
        folder = pretrained.model_folder(model.source)
        tokenizer = pretrained.load_tokenizer(folder)
        parts = {use: encode(getattr(splits, use), tokenizer, model.max_tokens) for use in USES}
        sizes = {
            use: {
                "documents": len(part),
                "tokens": sum(part.lengths),
                "sha256": digest(getattr(splits, use)),
            }
            for use, part in parts.items()
        }
        return SentenceSplits(
            train=parts["train"],
            validation=by_length(parts["validation"]),
            test=by_length(parts["test"]),
            manifest={
                "source": f"sentences of {len(files)} classes: {', '.join(files)}",
                "tokenizer": folder.parent.name if folder.name == "model" else folder.name,
                "vocabulary_size": len(tokenizer),
                "model_sha256": pretrained.weights_digest(folder),
                **sizes,
            },
            folder=folder,
            classes=len(files),
            tokenizer=tokenizer,
        )

    def build(self, model: SentenceModel, splits: SentenceSplits) -> nn.Module:
        """Return the encoder with a classifier that is drawn anew."""
        return pretrained.load_classifier(splits.folder, splits.classes)

    def fresh(self, model: nn.Module) -> tuple[str, ...]:
        """Return the names of the classifier's parameters."""
        return pretrained.fresh_parameters(model)

    def order(self, split: Encoded, batch: int, seed: int, epoch: int) -> np.ndarray:
        """Return an epoch's order, in which sentences of one batch are of similar length."""
        return grouped_order(split.lengths, batch, seed, epoch)

    def batch(self, split: Encoded, indices: Sequence[int] | np.ndarray) -> Batch:
        """Return sentences, padded to the longest."""
        inputs, labels = split.padded(indices)
        return Batch(inputs=inputs, targets=labels, items=len(labels))

    def logits(self, model: Callable[..., Any], batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the scores of the classes, and the classes."""
        return model(**batch.inputs).logits, batch.targets

    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        """Return the mean cross-entropy in nats."""
        logits, labels = self.logits(model, batch)
        return F.cross_entropy(logits.float(), labels)

    def special_tokens(self, splits: SentenceSplits) -> list[int]:
        """Return the ids of padding, separators and their like."""
        return splits.tokenizer.all_special_ids

    def score(self, model: Callable[..., Any], batch: Batch) -> dict[str, Tensor]:
        """Return the sum of the cross-entropy, and how many sentences have their class on top."""
        logits, labels = self.logits(model, batch)
        return {
            "loss": F.cross_entropy(logits.double(), labels, reduction="sum"),
            "accuracy": (logits.argmax(dim=-1) == labels).sum(),
        }

    def evaluated_together(self, split: Encoded) -> int:
        """Return how many sentences one forward of an evaluation takes."""
        return 64

    def save(
        self,
        folder: Path,
        model: nn.Module,
        splits: SentenceSplits,
        recipe: Recipe,
        weights: Mapping[str, Tensor],
    ) -> None:
        """Write the classifier, its tokenizer and the recipe."""
        pretrained.save(folder, model, splits.tokenizer, recipe, weights)

    def default_arms(self, model: Mapping[str, Any], data: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return seven arms of fine-tuning, their length and learning rate by the number of sentences."""
        own = dataclass_from_data(SentenceModel, dict(model), {}, ("model",))
        splits = self.prepare(own, dataclass_from_data(SentenceData, dict(data), {}, ("data",)), None)
        return default_arms(self.build(own, splits), len(splits.train))
