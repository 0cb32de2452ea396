"""Lightning's Trainer: a callback for schedules, penalties, logs and checkpoints, and one that stops."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from torch import Tensor

from ..errors import InputError
from ..layers import RateLayer
from ..schedules import Feedback
from ..surgery.regularize import Regularization
from ._handle import (
    by_kind,
    check_trained,
    draw_own_masks,
    feedback_by_selector,
    follow_gap,
    has_penalty,
    untouched_randomness,
)
from ._lightning_trial import TrialCallback as TrialCallback


class RegularizationCallback(Callback):
    """Steers a regularization while Lightning trains, and adds its penalty to the loss.

    Progress is the fraction of the optimizer steps done. The penalty is added to what ``training_step``
    returns, so that gradient accumulation, precision and several processes treat it as they treat the loss;
    it is logged apart, as ``penalty``, beside the rates, ``p/KIND``. A validation also logs the loss of the
    probe in evaluation mode, ``train_probe_loss``, and with it the clean gap,
    ``gap = val_loss - train_probe_loss``; and the fractions that computed masks keep, as drawn in training,
    ``keep/KIND``, and as evaluated, ``keep_eval/KIND``.

    A resumed run repeats losses and rates exactly, in one process or several. Lightning itself does not
    restore random numbers, so this callback does; from the middle of an epoch the data must be resumable too.

    Args:
        regularization: what `regularize_` returned for the model in the LightningModule.
        penalties: further terms of the loss, called without arguments, such as ``td.L2SP(model, 0.1)``.
        probe: a fixed list of training batches, all of one size, which go through ``training_step`` without
            gradients and without logs; None measures no gap.
        monitor: the name under which the module logs its validation loss.
        feedback: moves rates after each validation by the gap: one for all kinds of sites, or some by
            selector. Each selector has one rate, which starts at the mean of the rates there and takes the
            place of their schedules.

    Raises:
        InputError: when the model is another, its layers are frozen, or the module optimizes by hand; for
            feedback without a probe or for a selector without a rate.
    """

    def __init__(
        self,
        regularization: Regularization,
        *,
        penalties: Iterable[Callable[[], Tensor]] = (),
        probe: Iterable[Any] | None = None,
        monitor: str = "val_loss",
        feedback: Feedback | Mapping[str, Feedback] | None = None,
    ) -> None:
        self.regularization, self.penalties = regularization, tuple(penalties)
        self.feedback = feedback_by_selector(regularization, feedback)
        self.probe, self.monitor = None if probe is None else list(probe), monitor
        if self.feedback and self.probe is None:
            raise InputError("Feedback needs the gap; give the callback a probe, a list of training batches.")
        self.last_penalty: Tensor | None = None
        # Whether a checkpoint has brought the random numbers of this process back.
        self.restored = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the module's ``training_step`` under this callback."""
        check_trained(pl_module, self.regularization)
        if has_penalty(self.regularization, self.penalties):
            if not pl_module.automatic_optimization:
                raise InputError(
                    "The module optimizes by hand, so no callback can add the penalty; add "
                    "regularization.penalty() to your loss and give the callback a recipe without weights."
                )
            pl_module.training_step = partial(self.penalized_step, pl_module.training_step)

    def penalized_step(self, training_step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what ``training_step`` returns, with the penalty in its loss."""
        output = training_step(*args, **kwargs)
        if output is None:
            return None
        penalty = self.regularization.penalty() + sum(term() for term in self.penalties)
        self.last_penalty = penalty.detach()
        if isinstance(output, Mapping):
            return {**output, "loss": output["loss"] + penalty}
        return output + penalty

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a training without an end; let each process draw masks of its own."""
        if isinstance(trainer.strategy, DDPStrategy | FSDPStrategy) and not self.restored:
            # Resumed on another number of processes, it must not draw the masks of its beginning again.
            draw_own_masks(torch.initial_seed() + trainer.global_step, trainer.global_rank)
        self.restored = False
        if not 0 < trainer.estimated_stepping_batches < float("inf"):
            raise InputError(
                "A schedule needs the training's length; give the Trainer max_epochs or max_steps."
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Move everything to this step's place in the schedules."""
        self.follow(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log rates and penalty."""
        pl_module.log_dict(by_kind(self.regularization.metrics(), "p"))
        if self.last_penalty is not None:
            pl_module.log("penalty", self.last_penalty)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and log the clean gap and what masks keep."""
        if trainer.sanity_checking or self.probe is None or trainer.state.fn != "fit":
            return
        if self.monitor not in trainer.callback_metrics:
            raise InputError(
                f"The module logs no {self.monitor!r} in its validation_step; log it, or give the callback "
                "monitor='...' with the name of the validation loss."
            )
        with silent(pl_module), untouched_randomness(pl_module.device):
            measured = self.measured(trainer, pl_module)
        gap = trainer.callback_metrics[self.monitor].float() - measured["train_probe_loss"]
        # All processes must set the same rates.
        gap = trainer.strategy.reduce(gap.to(pl_module.device), reduce_op="mean")
        pl_module.log_dict({**measured, "gap": gap}, sync_dist=trainer.world_size > 1)
        if self.feedback:
            follow_gap(self.regularization, self.feedback, gap.item())

    def measured(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Return the probe's loss in evaluation mode and the fractions that masks keep."""
        assert self.probe is not None
        device = partial(trainer.strategy.batch_to_device, device=pl_module.device)
        with self.regularization.counting():
            losses = [loss_of(trainer, pl_module, device(b), n) for n, b in enumerate(self.probe)]
            kept = by_kind(self.regularization.metrics(), "keep")
        values = {"train_probe_loss": sum(losses) / len(losses)}
        values |= {name.replace("keep/", "keep_eval/"): value for name, value in kept.items()}
        if any(not isinstance(placed.layer, RateLayer) for placed in self.regularization.placed):
            with self.regularization.counting():
                pl_module.train()
                loss_of(trainer, pl_module, device(self.probe[0]), 0)
                pl_module.eval()
                values |= by_kind(self.regularization.metrics(), "keep")
        return values

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the schedules where the training ended."""
        self.follow(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the module its ``training_step`` back."""
        give_back_step(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the module its ``training_step`` back."""
        give_back_step(pl_module)

    def follow(self, trainer: Trainer) -> None:
        """Set the progress of the regularization and of the penalties."""
        progress = min(1.0, trainer.global_step / trainer.estimated_stepping_batches)
        parts: tuple[Any, ...] = (self.regularization, *self.penalties)
        for part in parts:
            part.set_progress(progress)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; Lightning calls it in every process."""
        return {"regularization": self.regularization.state_dict(), "random": random_states_of_all()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.regularization.load_state_dict(state_dict["regularization"])
        # Now, since Lightning draws the first batches before `on_train_start`.
        states, (rank, size) = state_dict["random"], place_among_processes()
        self.restored = len(states) == size
        if self.restored:
            set_random_states(states[rank])


class GapStopping(Callback):
    """Stops the training when it overfits: when the clean gap stays above a bound.

    The `RegularizationCallback` measures the gap. It says when to stop, not which weights are best: for those
    use ``ModelCheckpoint(monitor="val_loss")``.

    Args:
        max_gap: bound in nats.
        patience: validations in a row above the bound before it stops.
        metric: the name of the gap among the logged values.

    Raises:
        InputError: for a patience below 1, or a validation without the gap.
    """

    def __init__(self, max_gap: float, *, patience: int = 1, metric: str = "gap") -> None:
        if patience < 1:
            raise InputError(f"patience is {patience}, but it counts validations and is at least 1.")
        self.max_gap, self.patience, self.metric = max_gap, patience, metric
        self.waited = 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take in one validation."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.metric not in trainer.callback_metrics:
            raise InputError(
                f"Nothing logs {self.metric!r}; give the Trainer a RegularizationCallback with a probe."
            )
        gap = trainer.callback_metrics[self.metric].item()
        self.waited = self.waited + 1 if gap > self.max_gap else 0
        if self.waited >= self.patience:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.waited = state_dict["waited"]


def loss_of(trainer: Trainer, module: LightningModule, batch: Any, index: int) -> float:
    """Return the loss of the module's own ``training_step`` on a batch, in the mode the module is in."""
    step = module.training_step
    if isinstance(step, partial):
        (step,) = step.args
    with torch.no_grad(), trainer.precision_plugin.val_step_context():
        output: Any = step(batch, index)
    return (output["loss"] if isinstance(output, Mapping) else output).item()


def give_back_step(module: LightningModule) -> None:
    """Undo what `RegularizationCallback.on_fit_start` did."""
    step = vars(module).get("training_step")
    if isinstance(step, partial):
        (module.training_step,) = step.args


@contextmanager
def silent(module: LightningModule) -> Iterator[None]:
    """Let nothing be logged: what ``training_step`` logs of the probe is no training loss."""
    try:
        module.log = module.log_dict = ignore
        yield
    finally:
        del module.log, module.log_dict


def ignore(*args: Any, **kwargs: Any) -> None:
    """Do nothing."""


def place_among_processes() -> tuple[int, int]:
    """Return the rank of this process and how many train."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def random_states_of_all() -> list[dict[str, Any]]:
    """Return the states of the random generators of every process."""
    own, (_, size) = random_states(), place_among_processes()
    states: list[Any] = [own] * size
    if size > 1:
        torch.distributed.all_gather_object(states, own)
    return states


def random_states() -> dict[str, Any]:
    """Return the states of the random generators that training draws from."""
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Put the random generators where they were."""
    torch.set_rng_state(states["cpu"].cpu())
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
