"""A table into numbers by a linear model or a multilayer perceptron."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...runs.task import Batch, Metric, Splits
from .._mlp import MultilayerPerceptron, check_hidden
from .arms import default_arms
from .data import Rows, TableData, prepare_table


@dataclass(frozen=True, kw_only=True)
class RegressionConfig:
    """The model's shape.

    Args:
        hidden: units of each hidden layer; none makes a linear model.
    """

    hidden: tuple[int, ...] = (64, 64)

    def __post_init__(self) -> None:
        check_hidden(self.hidden)


class Regression:
    """Columns of a table into one of them.

    The loss is the squared error of the standardised target, so 1 is what its mean over the training rows
    gives. It decides. ``r2`` is the share of a split's variance that the model explains.
    """

    item = "row"
    metrics = (Metric(name="loss", unit="variances"), Metric(name="r2", better="higher"))
    Model = RegressionConfig
    Data = TableData

    def prepare(self, model: RegressionConfig, data: TableData, cache: Path | None) -> Splits:
        return prepare_table(data)

    def build(self, model: RegressionConfig, splits: Splits) -> nn.Module:
        return MultilayerPerceptron((splits.train.inputs.shape[1], *model.hidden, 1))

    def batch(self, split: Rows, indices: Sequence[int] | np.ndarray) -> Batch:
        chosen = torch.as_tensor(np.asarray(indices))
        return Batch(inputs={"x": split.inputs[chosen]}, targets=split.targets[chosen], items=len(chosen))

    def loss(self, model: Callable[..., Tensor], batch: Batch) -> Tensor:
        return (model(**batch.inputs)[:, 0].float() - batch.targets).square().mean()

    def score(self, model: Callable[..., Tensor], batch: Batch) -> dict[str, Tensor]:
        return {
            "loss": self.loss(model, batch) * batch.items,
            "target": batch.targets.sum(),
            "target_squared": batch.targets.square().sum(),
        }

    def summarize(self, means: Mapping[str, float]) -> dict[str, float]:
        variance = means["target_squared"] - means["target"] ** 2
        return {"loss": means["loss"], "r2": 1 - means["loss"] / variance}

    def default_arms(self, model: Mapping[str, Any], data: Mapping[str, Any]) -> list[dict[str, Any]]:
        return default_arms()
