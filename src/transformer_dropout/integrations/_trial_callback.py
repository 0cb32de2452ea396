"""Hugging Face's ``Trainer`` as the training of a trial: what it logs is what the trial reports."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..surgery.regularize import regularize_
from ._trainer_callbacks import RegularizationCallback

# What a Trainer logs besides losses and metrics: its work, its clock, and a mean over everything before.
NO_METRICS = ("total_flos", "train_loss", "train_runtime", "per_second", "epoch")
# Names that are others in the records of every run.
RENAMED = {"learning_rate": "lr", "eval_train_loss": "train_loss"}


class TrialCallback(TrainerCallback):
    """Reports to a trial what a Trainer logs: losses, and the metrics of its evaluations.

    ``eval_on_start=True`` among the training arguments makes the evaluation before the first step, by which a
    comparison checks that the arms of a seed start alike.

    Args:
        trial: the `Trial` that the training function was given.
    """

    def __init__(self, trial: Any) -> None:
        self.trial = trial

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell how many steps there will be."""
        self.trial.steps = state.max_steps

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Report one line of the Trainer's log."""
        if not state.is_world_process_zero:
            return
        values = {
            RENAMED.get(name, name): value
            for name, value in (logs or {}).items()
            if isinstance(value, int | float) and (name in RENAMED or not name.endswith(NO_METRICS))
        }
        if values:
            self.trial.report(step=state.global_step, **values)


@contextmanager
def regularized_trainers(trial: Any) -> Iterator[None]:
    """Put a trial's recipe into the model of every Trainer made in the ``with`` block, and report its logs.

    For training scripts that make their model and their Trainer themselves: the script stays as it is.

    Args:
        trial: the `Trial` that the training function was given.

    Raises:
        InputError: for a recipe with penalties, which only a Trainer of one's own adds to its loss.
    """
    make = Trainer.__init__

    def making(self: Trainer, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        if trial.recipe.rules:
            assert self.model is not None
            self.add_callback(RegularizationCallback(regularize_(self.model, trial.recipe)))
        self.add_callback(TrialCallback(trial))

    Trainer.__init__ = making  # type: ignore[method-assign]
    try:
        yield
    finally:
        Trainer.__init__ = make  # type: ignore[method-assign]
