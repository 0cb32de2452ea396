"""Stopping when validation no longer improves; the same metric chooses the weights to restore."""

import math
from dataclasses import dataclass

from .run_config import EarlyStoppingConfig


@dataclass
class EarlyStopping:
    """Follow the validation loss.

    Args:
        config: patience and min_delta; None never stops.

    Attributes:
        best: the lowest loss so far, in nats; its weights are the ones to restore.
        best_step: its step.
        counted: the last loss that counted as better, that is, by ``min_delta``.
        waited: evaluations since that one.
    """

    config: EarlyStoppingConfig | None
    best: float = math.inf
    best_step: int = -1
    counted: float = math.inf
    waited: int = 0

    def update(self, step: int, loss: float) -> bool:
        """Take in one evaluation; return whether it is the best so far."""
        if loss < self.counted - (self.config.min_delta if self.config else 0.0):
            self.counted, self.waited = loss, 0
        else:
            self.waited += 1
        if loss >= self.best:
            return False
        self.best, self.best_step = loss, step
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
