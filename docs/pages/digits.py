"""Perceptrons on few digits, trained in a second each."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import nn

import transformer_dropout as td
from transformer_dropout.runs.task import Batch, Splits
from transformer_dropout.tasks.images import Images
from transformer_dropout.tasks.images.data import ImageData, ImageSplit

TASK = Images()


@lru_cache
def digits(count: int = 300) -> Splits:
    """Return the digits, so many of them to train on."""
    return TASK.prepare(None, ImageData(train_images=count), None)


def everything(split: ImageSplit) -> Batch:
    """Return all examples of a split as one batch."""
    return TASK.batch(split, np.arange(len(split)))


def fit(
    model: nn.Module, splits: Splits, rules: Sequence[td.Rule] = (), *, steps: int = 600, seed: int = 0
) -> nn.Module:
    """Regularize a model, train it, and return it in evaluation mode."""
    if rules:
        td.regularize_(model, td.Recipe(rules))
    optimizer = torch.optim.AdamW(td.weight_decay_groups(model, 0.01), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    torch.manual_seed(seed)
    for _ in range(steps):
        batch = TASK.batch(splits.train, torch.randint(len(splits.train), (32,)).numpy())
        optimizer.zero_grad()
        TASK.loss(model.train(), batch).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def perceptron(splits: Splits, hidden: tuple[int, ...] = (256, 256), seed: int = 0) -> nn.Module:
    """Return a new perceptron for these images."""
    torch.manual_seed(seed)
    return TASK.build(TASK.Model(hidden=hidden), splits)


def scores(model: nn.Module, batch: Batch) -> dict[str, float]:
    """Return mean loss and accuracy in evaluation mode."""
    with torch.no_grad():
        return {name: value.item() / batch.items for name, value in TASK.score(model.eval(), batch).items()}
