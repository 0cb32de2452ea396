"""Weight averaging: a second set of weights that follows the trained ones slowly, for evaluation."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..errors import InputError
from ..schedules import Schedule, as_schedule
from .weights import value_at


class EMA:
    """The exponential moving average of a model's weights.

    Formula, after each optimizer step: ``average <- decay * average + (1 - decay) * weights``; the first
    step's weights begin it. The averaged model is PyTorch's ``AveragedModel``, which copies buffers as they
    are.

    Args:
        model: what is trained; regularized first, not compiled and not wrapped.
        decay: share of the average that a step keeps; 0.99 averages over about 100 steps. A schedule moves
            with ``set_progress``.

    Attributes:
        model: the averaged model, to be evaluated, in evaluation mode.
        decay: as last set.

    Raises:
        InputError: for a decay outside [0, 1).

    Papers: Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; Morales-Brotons
    et al. 2024, "Exponential moving average of weights in deep learning".
    """

    def __init__(self, model: nn.Module, decay: float | Schedule = 0.99) -> None:
        self.schedule = as_schedule(decay)
        self.set_progress(0.0)
        self._trained = model
        self._averaged = AveragedModel(model, multi_avg_fn=self._average)
        self._averaged.requires_grad_(False).eval()

    def set_progress(self, progress: float) -> None:
        """Move the decay to its value at ``progress``, a fraction in [0, 1]."""
        decay = value_at(self.schedule, progress)
        if not 0 <= decay < 1:
            raise InputError(f"decay is {decay}; it is a share of at least 0 and below 1, such as 0.99.")
        self.decay = decay

    def _average(self, averaged: Any, weights: Any, steps: Any) -> None:
        get_ema_multi_avg_fn(self.decay)(averaged, weights, steps)

    @property
    def model(self) -> nn.Module:
        """The averaged model."""
        return self._averaged.module

    def after_step(self) -> None:
        """Move the average towards the weights; call it after each optimizer step."""
        self._averaged.update_parameters(self._trained)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Let the trained model have the averaged weights inside the ``with`` block, then its own again.

        Raises:
            InputError: before the first ``after_step()``.
        """
        if not int(self._averaged.n_averaged):
            raise InputError("There is no average before the first step; call after_step() after each step.")
        pairs = list(zip(self._trained.parameters(), self.model.parameters(), strict=True))
        kept = [weight.detach().clone() for weight, _ in pairs]
        with torch.no_grad():
            for weight, average in pairs:
                weight.copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for (weight, _), value in zip(pairs, kept, strict=True):
                    weight.copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights, by the names of the model, and the number of steps averaged."""
        return {"n_averaged": self._averaged.n_averaged, **self.model.state_dict()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue where ``state_dict`` was taken.

        Raises:
            InputError: when it was taken from something else.
        """
        if "n_averaged" not in state:
            raise InputError("The state has no 'n_averaged'; hand over what state_dict() of an EMA returned.")
        self._averaged.n_averaged.copy_(state["n_averaged"])
        self.model.load_state_dict({name: value for name, value in state.items() if name != "n_averaged"})
