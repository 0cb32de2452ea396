"""Images into classes by a multilayer perceptron."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...runs.task import ACCURACY, LOSS, Batch, Splits
from .._mlp import MultilayerPerceptron, check_hidden
from .arms import default_arms
from .augment import augmented
from .data import ImageData, ImageSplit, prepare_images


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """The perceptron's shape.

    Args:
        hidden: units of each hidden layer; none makes a linear classifier.
    """

    hidden: tuple[int, ...] = (256, 256)

    def __post_init__(self) -> None:
        check_hidden(self.hidden)


class Images:
    """Grey images into classes.

    The loss decides. On a few hundred images for validation one image more or less moves the accuracy by
    0.3 %, and it cannot see how sure a wrong answer is, which is what regularization changes first; the
    cross-entropy sees both.
    """

    item = "image"
    metrics = (LOSS, ACCURACY)
    Model: type = MLPConfig
    Data = ImageData

    def prepare(self, model: Any, data: ImageData, cache: Path | None) -> Splits:
        return prepare_images(data)

    def build(self, model: Any, splits: Splits) -> nn.Module:
        images: ImageSplit = splits.train
        return MultilayerPerceptron((images.images[0].numel(), *model.hidden, images.classes))

    def batch(self, split: ImageSplit, indices: Sequence[int] | np.ndarray) -> Batch:
        chosen = torch.as_tensor(np.asarray(indices))
        return Batch(
            inputs={"x": split.images[chosen].float() / 255}, targets=split.labels[chosen], items=len(chosen)
        )

    def augment(self, data: ImageData, batch: Batch, generator: torch.Generator) -> Batch:
        return replace(batch, inputs={"x": augmented(batch.inputs["x"], data.augment, generator)})

    def logits(self, model: Callable[..., Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        return model(**batch.inputs), batch.targets

    def loss(self, model: Callable[..., Tensor], batch: Batch) -> Tensor:
        logits, targets = self.logits(model, batch)
        return F.cross_entropy(logits.float(), targets)

    def score(self, model: Callable[..., Tensor], batch: Batch) -> dict[str, Tensor]:
        logits, targets = self.logits(model, batch)
        return {
            "loss": F.cross_entropy(logits.float(), targets, reduction="sum"),
            "accuracy": (logits.argmax(1) == targets).sum(),
        }

    def default_arms(self, model: Mapping[str, Any], data: Mapping[str, Any]) -> list[dict[str, Any]]:
        return default_arms()
