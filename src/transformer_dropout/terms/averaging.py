"""Weight averaging: a second set of weights that follows the trained ones slowly, for evaluation."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..errors import InputError
from ..kernels.sharded import is_sharded, like_shards, reshard, shards_parameters, whole
from ..schedules import Schedule, as_schedule
from .weights import value_at


class EMA:
    """The exponential moving average of a model's weights.

    Formula, after each optimizer step: ``average <- decay * average + (1 - decay) * weights``; the first
    step's weights begin it. The averaged model is PyTorch's ``AveragedModel``, which copies buffers as they
    are.

    FSDP2 (``fully_shard``) may shard the trained model afterwards: the average is sharded alike at the next
    step. It can then not be called, only be lent by `averaged_weights`, and every process must call the
    methods.

    Args:
        model: what is trained; regularized first, not compiled, not wrapped and not sharded yet.
        decay: share of the average that a step keeps; 0.99 averages over about 100 steps. A schedule moves
            with ``set_progress``.

    Attributes:
        model: the averaged model, to be evaluated, in evaluation mode.
        decay: as last set.

    Raises:
        InputError: for a decay outside [0, 1), or a model that is sharded already.

    Papers: Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; Morales-Brotons
    et al. 2024, "Exponential moving average of weights in deep learning".
    """

    def __init__(self, model: nn.Module, decay: float | Schedule = 0.99) -> None:
        self.schedule = as_schedule(decay)
        self.set_progress(0.0)
        if any(map(shards_parameters, model.modules())):
            raise InputError(
                "The model is sharded already and cannot be copied; make the EMA before fully_shard."
            )
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
        self._shard_alike()
        self._averaged.update_parameters(self._trained)

    def _reshard(self) -> None:
        """Let FSDP hold shards alone: after a forward without a backward there are whole parameters too."""
        for module in self._trained.modules():
            reshard(module)

    def _shard_alike(self) -> None:
        """Shard the average as the weights are, where they have been sharded since it was made."""
        if not any(map(is_sharded, self._trained.parameters())):
            return
        made: dict[Tensor, nn.Parameter] = {}
        # By every name: a parameter may have several.
        averages = dict(self.model.named_parameters(remove_duplicate=False))
        for name, weight in self._trained.named_parameters(remove_duplicate=False):
            average = averages[name]
            if is_sharded(weight) and not is_sharded(average):
                if average not in made:
                    made[average] = nn.Parameter(like_shards(average.data, weight), requires_grad=False)
                owner, _, own = name.rpartition(".")
                setattr(self.model.get_submodule(owner), own, made[average])

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Let the trained model have the averaged weights inside the ``with`` block, then its own again.

        Raises:
            InputError: before the first ``after_step()``.
        """
        if not int(self._averaged.n_averaged):
            raise InputError("There is no average before the first step; call after_step() after each step.")
        self._reshard()
        self._shard_alike()
        pairs = list(zip(self._trained.parameters(), self.model.parameters(), strict=True))
        kept = [weight.detach().clone() for weight, _ in pairs]
        with torch.no_grad():
            for weight, average in pairs:
                weight.copy_(average)
        try:
            yield
        finally:
            self._reshard()
            with torch.no_grad():
                for (weight, _), value in zip(pairs, kept, strict=True):
                    weight.copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights, by the names of the model, and the number of steps averaged."""
        weights = {name: whole(value) for name, value in self.model.state_dict().items()}
        return {"n_averaged": self._averaged.n_averaged, **weights}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue where ``state_dict`` was taken.

        Raises:
            InputError: when it was taken from something else.
        """
        if "n_averaged" not in state:
            raise InputError("The state has no 'n_averaged'; hand over what state_dict() of an EMA returned.")
        self._averaged.n_averaged.copy_(state["n_averaged"])
        current = self.model.state_dict()
        self.model.load_state_dict(
            {
                name: like_shards(value, current[name]) if name in current else value
                for name, value in state.items()
                if name != "n_averaged"
            }
        )
