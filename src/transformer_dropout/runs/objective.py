"""What a training step minimises, before any penalty: the task's loss, or a smoothed or doubled one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..schedules import Schedule
from ..surgery.mixture_of_experts import Mixtures, mixture_of_experts_
from ..terms.consistency import adversarial_dropout_loss, at_anchor, doubled_tail, halves
from ..terms.losses import rdrop_loss
from ..terms.token_noise import TokenNoise, token_noise_
from .task import Batch, Splits, Task
from .training_config import TrainingConfig

Loss = Callable[[nn.Module, Batch], Tensor]


class Objective:
    """The loss of one batch in training; evaluation sees no label smoothing, R-Drop or token noise.

    Args:
        task: what is trained.
        config: whether targets are smoothed, passes doubled and tokens replaced.
        model: which is given its token noise, in place.
        splits: the task's examples.
    """

    def __init__(self, task: Task, config: TrainingConfig, model: nn.Module, splits: Splits) -> None:
        self.task, self.smoothing = task, config.label_smoothing
        self.view, self.blocks = config.rdrop_view, config.rdrop_blocks
        self.divergence: Schedule | None = config.schedule("rdrop") if config.rdrop else None
        self.noise: TokenNoise | None = None
        if config.token_noise:
            special = task.special_tokens(splits)  # type: ignore[attr-defined]
            self.noise = token_noise_(model, config.schedule("token_noise"), keep=special)
        self.mixtures: Mixtures | None = None
        if config.experts is not None:
            self.mixtures = Mixtures(model, config.experts.schedule)
        self.set_progress(0.0)

    def set_progress(self, progress: float) -> None:
        """Move R-Drop's weight, the token noise and the weight of the experts' balance to ``progress``."""
        self.weight = 0.0 if self.divergence is None else self.divergence(progress)
        for part in (self.noise, self.mixtures):
            if part is not None:
                part.set_progress(progress)

    @property
    def is_the_tasks(self) -> bool:
        """Whether nothing is added to the task's own loss."""
        return self.divergence is None and not self.smoothing

    def penalty(self) -> Tensor | float:
        """Return the load-balancing loss of the experts in the last forward; 0 where there are none."""
        return 0.0 if self.mixtures is None else self.mixtures.penalty()

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss per item.

        R-Drop's loss is halved: it has two cross-entropies, and the gradients of all arms are clipped alike.
        """
        if self.is_the_tasks:
            return self.task.loss(model, batch)
        if self.divergence is not None:
            first, second, targets = self.views(model, batch)
            if self.view == "adversarial":
                return adversarial_dropout_loss(first, second, targets, self.weight)
            return rdrop_loss(first, second, targets, self.weight) / 2
        logits, targets = self.scores_and_classes(model, batch)
        return F.cross_entropy(
            logits.flatten(0, -2), targets.flatten(), label_smoothing=self.smoothing, ignore_index=-100
        )

    def views(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the class scores of two views of a batch, and the classes."""
        if self.blocks is not None:
            with doubled_tail(model, self.blocks, examples := len(batch.targets)):
                logits, targets = self.scores_and_classes(model, batch)
            return *halves(logits, examples), targets
        if self.view == "dropout":
            logits, targets = self.scores_and_classes(model, doubled(batch))
            first, second = logits.chunk(2)
            return first, second, targets.chunk(2)[0]
        with self.plain_view(model):
            first, targets = self.scores_and_classes(model, batch)
        return first, self.scores_and_classes(model, batch)[0], targets

    @contextmanager
    def plain_view(self, model: nn.Module) -> Iterator[None]:
        """Let the model make its first view inside the ``with`` block: without what makes the second."""
        if self.noise is not None and self.view == "token_noise":
            with self.noise.off():
                yield
        else:
            with at_anchor(model):
                yield

    def scores_and_classes(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return class scores in float32 and the classes."""
        logits, targets = self.task.logits(model, batch)  # type: ignore[attr-defined]
        return logits.float(), targets


def place_experts(model: nn.Module, config: TrainingConfig) -> None:
    """Put the mixtures of experts that a run has in place of the model's MLPs."""
    experts = config.experts
    if experts is not None:
        mixture_of_experts_(model, experts.select, experts=experts.experts, top_k=experts.top_k)


def doubled(batch: Batch) -> Batch:
    """Return a batch twice over, so that one forward makes both passes, as the paper of R-Drop does."""

    def twice(value: Any) -> Any:
        return torch.cat([value, value]) if isinstance(value, Tensor) and value.ndim else value

    inputs = {name: twice(value) for name, value in batch.inputs.items()}
    return replace(batch, inputs=inputs, targets=twice(batch.targets), items=2 * batch.items)
