"""A causal language model of transformers, fine-tuned on a text, or on answers to prompts."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InputError
from ...recipe import Recipe
from ...runs.dataclass_from_data import dataclass_from_data
from ...runs.task import LOSS, Batch, Metric, Splits
from .. import _pretrained as pretrained
from .arms import default_arms
from .examples import IGNORED, PaddedExamples, pair_examples, text_examples

TOKENS_PER_FORWARD = 4096


@dataclass(frozen=True, kw_only=True)
class CausalLMModel:
    """Which pre-trained model, and how it is trained.

    Attributes:
        source: folder of a causal language model of transformers, with its tokenizer.
        context: tokens that an example predicts, at most.
        lora: rank of LoRA's matrices, which alone are trained; None to train all weights.
    """

    source: str = ""
    context: int = 128
    lora: int | None = None

    def __post_init__(self) -> None:
        for name in ("context", "lora"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"model.{name} is {value}, but it must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class CausalLMData:
    """Which text.

    Attributes:
        source: a text file, a folder of texts, ``stdlib-docs``, ``stdlib-code`` or ``dataset:NAME``; or a
            ``.jsonl`` file of ``{"prompt": ..., "answer": ...}``, of which the answers are learned.
        train_examples: how many to train on; None for all.
        held_out: share of the text or the prompts for validation and test together.
    """

    source: str = "stdlib-docs"
    train_examples: int | None = None
    held_out: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise InputError(f"data.held_out is {self.held_out}, but it is a share between 0 and 1.")
        if self.train_examples is not None and self.train_examples < 1:
            raise InputError(f"data.train_examples is {self.train_examples}, but it is at least 1, or null.")


@dataclass(frozen=True, kw_only=True)
class CausalLMSplits(Splits):
    """Examples, with the model's folder and its tokenizer."""

    folder: Path
    tokenizer: Any


class CausalLM:
    """Any causal language model, fine-tuned in full or by LoRA."""

    item = "token"
    metrics = (LOSS, Metric(name="perplexity"))
    Model = CausalLMModel
    Data = CausalLMData

    def prepare(self, model: CausalLMModel, data: CausalLMData, cache: Path | None) -> CausalLMSplits:
        """Return the examples of a text or of a file of pairs."""
        if not model.source:
            raise InputError("This task fine-tunes a model that is there; name its folder with --model DIR.")
        folder = pretrained.model_folder(model.source)
        tokenizer = pretrained.load_tokenizer(folder, padding=False)
        read = pair_examples if data.source.endswith(".jsonl") else text_examples
        place: Any = Path(data.source) if read is pair_examples else data.source
        train, validation, test = read(place, tokenizer, model.context, data.held_out)
        if data.train_examples is not None:
            if data.train_examples > len(train):
                raise InputError(
                    f"data.train_examples is {data.train_examples}, but there are {len(train)}; use --set "
                    f"data.train_examples={len(train)} or less, or null for all."
                )
            train = train[: data.train_examples]
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
        parts = {
            name: PaddedExamples(examples=tuple(found), pad=pad)
            for name, found in (("train", train), ("validation", validation), ("test", test))
        }
        return CausalLMSplits(
            **parts,
            manifest={
                "source": data.source,
                "tokenizer": folder.name,
                "vocabulary_size": len(tokenizer),
                "model_sha256": pretrained.weights_digest(folder),
                **{name: part.sizes() for name, part in parts.items()},
            },
            folder=folder,
            tokenizer=tokenizer,
        )

    def build(self, model: CausalLMModel, splits: CausalLMSplits) -> nn.Module:
        """Return the model, with LoRA's matrices beside its frozen weights where they are asked for."""
        loaded = pretrained.load(pretrained.of_transformers("AutoModelForCausalLM"), splits.folder)
        limit = getattr(loaded.config, "max_position_embeddings", None)
        if isinstance(limit, int) and model.context > limit:
            raise InputError(f"model.context is {model.context}, but the model has {limit} positions.")
        return loaded if model.lora is None else pretrained.with_lora(loaded, model.lora)

    def fresh(self, model: nn.Module) -> list[str]:
        """Return the names of LoRA's matrices, and of what the folder lacked."""
        drawn = pretrained.fresh_parameters(model)
        return [name for name, _ in model.named_parameters() if ".lora_" in name or name in drawn]

    def batch(self, split: PaddedExamples, indices: Sequence[int] | np.ndarray) -> Batch:
        """Return examples, padded to the longest; items are the tokens that are predicted."""
        inputs, targets = split.batch(indices)
        return Batch(inputs=inputs, targets=targets, items=int((targets != IGNORED).sum()))

    def logits(self, model: Callable[..., Any], batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the scores of every token id, and the ids."""
        return model(**batch.inputs, use_cache=False).logits, batch.targets

    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        """Return the mean cross-entropy in nats over the predicted tokens."""
        logits, targets = self.logits(model, batch)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)

    def special_tokens(self, splits: CausalLMSplits) -> list[int]:
        """Return the ids of padding, separators and their like."""
        return splits.tokenizer.all_special_ids

    def score(self, model: Callable[..., Any], batch: Batch) -> dict[str, Tensor]:
        """Return the sum of the cross-entropy."""
        return {"loss": self.loss(model, batch).double() * batch.items}

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        """Return the loss and its perplexity."""
        return means | {"perplexity": math.exp(min(means["loss"], 700.0))}

    def evaluated_together(self, split: PaddedExamples) -> int:
        """Return how many examples one forward of an evaluation takes."""
        longest = max(len(example.ids) for example in split.examples)
        return max(1, TOKENS_PER_FORWARD // longest)

    def save(
        self,
        folder: Path,
        model: nn.Module,
        splits: CausalLMSplits,
        recipe: Recipe,
        weights: Mapping[str, Tensor],
    ) -> None:
        """Write the model, or LoRA's matrices, with tokenizer and recipe."""
        pretrained.save(folder, model, splits.tokenizer, recipe, weights)

    def default_arms(self, model: Mapping[str, Any], data: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the arms of fine-tuning, among them dropout that falls to 0 on the way."""
        own = dataclass_from_data(CausalLMModel, dict(model), {}, ("model",))
        splits = self.prepare(own, dataclass_from_data(CausalLMData, dict(data), {}, ("data",)), None)
        return default_arms(self.build(own, splits), len(splits.train), own.lora is not None)
