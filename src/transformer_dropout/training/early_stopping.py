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
        best: the lowest loss so far that counted as better, in nats.
        best_step: its step.
        waited: evaluations since.
    """

    config: EarlyStoppingConfig | None
    best: float = math.inf
    best_step: int = -1
    waited: int = 0

    def update(self, step: int, loss: float) -> bool:
        """Take in one evaluation; return whether it is the best so far."""
        if loss < self.best - (self.config.min_delta if self.config else 0.0):
            self.best, self.best_step, self.waited = loss, step, 0
            return True
        self.waited += 1
        return False

    @property
    def should_stop(self) -> bool:
        """Whether patience has run out."""
        return self.config is not None and self.waited >= self.config.patience

    def state(self) -> dict[str, float]:
        """Return what a checkpoint keeps."""
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def load_state(self, state: dict) -> None:
        """Continue from a checkpoint."""
        self.best, self.best_step, self.waited = state["best"], state["best_step"], state["waited"]
