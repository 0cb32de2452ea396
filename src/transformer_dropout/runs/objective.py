"""What a training step minimises, before any penalty: the task's loss, or a smoothed or doubled one."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..schedules import Schedule
from ..terms.losses import rdrop_loss
from .task import Batch, Task
from .training_config import TrainingConfig


class Objective:
    """The loss of one batch in training; evaluation never sees label smoothing or R-Drop.

    Args:
        task: what is trained.
        config: whether targets are smoothed and passes doubled; both need class scores of the task.
    """

    def __init__(self, task: Task, config: TrainingConfig) -> None:
        self.task, self.smoothing = task, config.label_smoothing
        self.divergence: Schedule | None = config.schedule("rdrop") if config.rdrop else None
        self.set_progress(0.0)

    def set_progress(self, progress: float) -> None:
        """Move the weight of R-Drop to its value at ``progress``."""
        self.weight = 0.0 if self.divergence is None else self.divergence(progress)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss an item.

        R-Drop's loss is halved: it has two cross-entropies, and the gradients of all arms are clipped alike.
        """
        if self.divergence is not None:
            logits, targets = self.scored(model, doubled(batch))
            first, second = logits.chunk(2)
            return rdrop_loss(first, second, targets.chunk(2)[0], self.weight) / 2
        if self.smoothing:
            logits, targets = self.scored(model, batch)
            return F.cross_entropy(
                logits.flatten(0, -2), targets.flatten(), label_smoothing=self.smoothing, ignore_index=-100
            )
        return self.task.loss(model, batch)

    def scored(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return class scores in float32 and the classes."""
        logits, targets = self.task.logits(model, batch)  # type: ignore[attr-defined]
        return logits.float(), targets


def doubled(batch: Batch) -> Batch:
    """Return a batch twice over, so that one forward makes both passes, as the paper of R-Drop does."""

    def twice(value: Any) -> Any:
        return torch.cat([value, value]) if isinstance(value, Tensor) and value.ndim else value

    inputs = {name: twice(value) for name, value in batch.inputs.items()}
    return replace(batch, inputs=inputs, targets=twice(batch.targets), items=2 * batch.items)
