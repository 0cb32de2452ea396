"""Text from scratch: the reference decoder on windows of tokens."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...recipe import Recipe
from ...runs.task import Batch, Metric, Splits
from .arms import default_arms
from .augment import augmented
from .data import DataConfig, Tokenizer, Windows, prepare, vocabulary_size
from .decoder import Decoder, DecoderConfig
from .published import from_published, is_published
from .saved_model import save_model

# Tokens in one forward of an evaluation; more gains no speed and costs memory for the logits.
TOKENS_PER_FORWARD = 4096
BYTES = 256


@dataclass(frozen=True, kw_only=True)
class TextSplits(Splits):
    """Windows of tokens, and the tokenizer that made them; None where only sizes matter."""

    tokenizer: Tokenizer | None
    vocabulary_size: int


class Language:
    """A small decoder, trained to predict the next token of a text."""

    item = "token"
    metrics = (Metric(name="loss", unit="nats"),)
    Model = DecoderConfig
    Data = DataConfig

    def prepare(self, model: DecoderConfig, data: DataConfig, cache: Path | None) -> TextSplits:
        """Return the windows of a text, cut from its cached tokens."""
        prepared = prepare(data, cache)
        test = prepared.test
        return TextSplits(
            train=Windows(prepared.train, model.context),
            validation=Windows(prepared.validation, model.context),
            test=None if test is None else Windows(test, model.context),
            manifest=flat(prepared.manifest),
            tokenizer=prepared.tokenizer,
            vocabulary_size=prepared.tokenizer.vocabulary_size,
        )

    def sketch(self, model: DecoderConfig, data: DataConfig) -> TextSplits:
        """Return windows of zeros, with as many token ids as the tokenizer's name tells."""
        windows = Windows(np.zeros(2 * model.context + 1, dtype=np.uint8), model.context)
        size = vocabulary_size(data.tokenizer) or BYTES
        return TextSplits(
            train=windows,
            validation=windows,
            manifest={"vocabulary_size": size},
            tokenizer=None,
            vocabulary_size=size,
        )

    def build(self, model: DecoderConfig, splits: TextSplits) -> Decoder:
        """Return the decoder."""
        return Decoder(splits.vocabulary_size, model)

    def batch(self, split: Windows, indices: Sequence[int] | np.ndarray) -> Batch:
        """Return windows and, one token later, their targets."""
        tokens, targets = split.inputs_and_targets(indices)
        return Batch(inputs={"tokens": tokens}, targets=targets, items=targets.numel())

    def augment(self, data: DataConfig, batch: Batch, generator: torch.Generator) -> Batch:
        """Return a training batch of windows changed as the data section says."""
        if data.augment is None:
            return batch
        text = torch.cat([batch.inputs["tokens"], batch.targets[:, -1:]], dim=1)
        text = augmented(text, data.augment, generator)
        tokens, targets = text[:, :-1], text[:, 1:]
        return Batch(inputs={"tokens": tokens}, targets=targets, items=targets.numel())

    def loss(self, model: Callable[..., Tensor], batch: Batch) -> Tensor:
        """Return the mean cross-entropy in nats, which the decoder computes without all logits at once."""
        return model(batch.inputs["tokens"], batch.targets)

    def logits(self, model: Callable[..., Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the scores of every token id, and the ids."""
        return model(batch.inputs["tokens"]), batch.targets

    def special_tokens(self, splits: TextSplits) -> tuple[int, ...]:
        """Return no ids: every token is one of the text."""
        return ()

    def score(self, model: Callable[..., Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the sum of the cross-entropy."""
        return {"loss": self.loss(model, batch).double() * batch.items}

    def evaluated_together(self, split: Windows) -> int:
        """Return how many windows one forward of an evaluation takes."""
        return max(1, TOKENS_PER_FORWARD // split.context)

    def translate(self, data: dict[str, Any], places: dict, name: str) -> tuple[dict[str, Any], dict]:
        """Return a published run config in the project's own form; any other as it is."""
        return (from_published(data, places, name=name), {}) if is_published(data) else (data, places)

    def save(
        self, folder: Path, model: Decoder, splits: TextSplits, recipe: Recipe, weights: Mapping[str, Tensor]
    ) -> None:
        """Write decoder, recipe and tokenizer, as `dropout generate` reads them."""
        save_model(folder, model, recipe, dict(weights))
        assert splits.tokenizer is not None
        splits.tokenizer.save(folder)

    def default_arms(self, model: Mapping[str, Any], data: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the arms that are compared when none are named."""
        return default_arms(data)


def flat(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest with its splits beside its other keys."""
    return {key: value for key, value in manifest.items() if key != "splits"} | manifest["splits"]
