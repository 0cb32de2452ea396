"""AdamW with decay on matrices only, and the learning rate over the steps."""

import math

import torch
from torch import nn

from ..terms.weights import weight_decay_groups
from .run_config import TrainingConfig


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Return AdamW in its fused form, which is several times faster than the default on a CPU as well.

    Paper: Loshchilov and Hutter 2019, "Decoupled weight decay regularization".
    """
    return torch.optim.AdamW(
        weight_decay_groups(model, config.schedule("weight_decay")(0.0)),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        fused=True,
    )


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Return the learning rate of a step: linear warm-up, then half a cosine from ``lr`` to ``min_lr``."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    decay_steps = config.steps if config.decay_steps is None else config.decay_steps
    share = (step - config.warmup_steps) / max(1, decay_steps - config.warmup_steps)
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * min(1.0, share))) / 2
