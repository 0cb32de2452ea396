"""Stopping when validation no longer improves; the same metric chooses the weights to restore."""

import math
from dataclasses import dataclass

from .training_config import EarlyStoppingConfig


@dataclass
class EarlyStopping:
    """Follow the metric that decides, as a number of which less is better.

    Args:
        config: patience and min_delta; None never stops.

    Attributes:
        best: the lowest value so far; its weights are the ones to restore.
        best_step: its step.
        counted: the last value that counted as better, that is, by ``min_delta``.
        waited: evaluations since that one.
    """

    config: EarlyStoppingConfig | None
    best: float = math.inf
    best_step: int = -1
    counted: float = math.inf
    waited: int = 0

    def update(self, step: int, value: float) -> bool:
        """Take in one evaluation; return whether it is the best so far."""
        if value < self.counted - (self.config.min_delta if self.config else 0.0):
            self.counted, self.waited = value, 0
        else:
            self.waited += 1
        if value >= self.best:
            return False
        self.best, self.best_step = value, step
        return True

    @property
    def should_stop(self) -> bool:
        """Whether patience has run out."""
        return self.config is not None and self.waited >= self.config.patience

    def state(self) -> dict[str, float]:
        """Return what a checkpoint keeps."""
        return {name: getattr(self, name) for name in ("best", "best_step", "counted", "waited")}

    def load_state(self, state: dict) -> None:
        """Continue from a checkpoint."""
        self.best, self.best_step = state["best"], state["best_step"]
        self.counted, self.waited = state["counted"], state["waited"]
