"""Counting what learned masks keep."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class KeepCount:
    """Kept and total elements of one layer's masks, as drawn and as thresholded at one half."""

    kept: float = 0.0
    above_half: float = 0.0
    total: int = 0

    def add(self, keep_probability: Tensor, mask: Tensor) -> None:
        """Count one forward."""
        self.kept += mask.sum(dtype=torch.float64).item()
        self.above_half += int((keep_probability >= 0.5).sum())
        self.total += mask.numel()

    def fractions(self) -> dict[str, float]:
        """Return the fractions kept, by the name of the metric."""
        return {"keep": self.kept / self.total, "keep_thresholded": self.above_half / self.total}
