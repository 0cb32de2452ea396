"""Lightning's Trainer as the training of a trial: what a module logs is what the trial reports."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class TrialCallback(Callback):
    """Reports to a trial what a module logs in training and, after every validation, what it logged there.

    A validation before the first step, ``trainer.validate(module)`` in front of ``trainer.fit(module)``, lets
    a comparison check that the arms of a seed start alike; the sanity check reports nothing.

    Args:
        trial: the `Trial` that the training function was given.
    """

    def __init__(self, trial: Any) -> None:
        self.trial = trial

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell how many steps there will be."""
        steps = trainer.estimated_stepping_batches
        self.trial.steps = int(steps) if steps < float("inf") else None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report what is logged so far."""
        if trainer.is_global_zero and not trainer.sanity_checking and trainer.callback_metrics:
            values = {name.replace("/", "_"): v for name, v in trainer.callback_metrics.items()}
            self.trial.report(step=trainer.global_step, **values)
