"""A run in its folder: started once, resumed as often as needed, finished once."""

import signal
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..recipe import Recipe
from .checkpoint import Checkpoint, DamagedCheckpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from .cost import sketch_of_splits
from .evaluate import collapsed_masks
from .files import clear_write_errors, write_atomically, write_tensors
from .listener import Listener, RunProgress
from .loop import CHECK_EVERY, NonFiniteLoss, Training
from .memory_limit import check_fit, fitting_cost
from .processes import Processes, joined_processes
from .record import Records, new_record
from .reporting import reporting
from .run_config import RunConfig
from .run_folder import check_folder, clear_half_written, locked
from .stop_signals import StopRequest, stop_requests
from .task import Splits

# Before this share of the steps masks that keep everything are where they started, not collapsed.
ALARM_FROM = 0.25
SECONDS_BETWEEN_PROGRESS = 0.25
# Whoever cannot signal a run's process, since it is on another machine, puts this file into its folder.
STOP_FILE = "stop"


class Interrupted(RuntimeError):
    """A signal asked the run to stop; its checkpoint is saved.

    Attributes:
        signal: the number of the signal.
        step: the step that was saved.
    """

    def __init__(self, signal: int, step: int) -> None:
        super().__init__(f"Stopped at step {step}")
        self.signal, self.step = signal, step


def run(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    listener: Listener | None = None,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Train one run config in its folder and return the content of its ``run.json``.

    Args:
        config: what to train.
        folder: its run folder; it may exist only to be resumed.
        resume: continue what the folder holds; a finished run is returned as it is.
        listener: whom to tell.
        cache: where prepared data lie; None for the user's cache folder.

    Raises:
        InputError: when the config does not fit, the folder holds another run or is in use, the disk is
            full, or the loss stops being finite.
        Interrupted: when a signal asked to stop; everything is saved.
    """
    check_config(config)
    listener = listener or Listener()
    with joined_processes() as processes, stop_requests() as stop:
        if not processes.first:
            listener = Listener()
        finished = check_folder(config, folder, resume)
        if finished is not None:
            listener.message(f"{folder} holds this run, finished; nothing to do.")
            return finished
        with locked(folder, processes):
            splits = prepared_once(config, cache, processes)
            with clear_write_errors(folder):
                return RunInFolder(config, folder, splits, processes, listener, stop).to_the_end()


def check_config(config: RunConfig) -> None:
    """Refuse whatever the config alone can get wrong, before a folder is made or a corpus read.

    Raises:
        InputError: when the config does not fit.
    """
    stand_ins = sketch_of_splits(config)
    if stand_ins is not None:
        check_fit(config, stand_ins)


def prepare(config: RunConfig, cache: Path | None = None) -> Splits:
    """Return a run's examples."""
    return config.find_task().prepare(config.model, config.data, cache)


def prepared_once(config: RunConfig, cache: Path | None, processes: Processes) -> Splits:
    """Let one process prepare the data and the others find them in the cache."""
    first = prepare(config, cache) if processes.first else None
    processes.wait()
    return prepare(config, cache) if first is None else first


class RunInFolder:
    """The training of one run together with its files."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        splits: Splits,
        processes: Processes,
        listener: Listener,
        stop: StopRequest,
    ) -> None:
        self.config, self.folder, self.splits = config, folder, splits
        self.processes, self.listener, self.stop = processes, listener, stop
        self.checkpoints = folder / "checkpoints"
        self.records = Records(folder, processes.first)
        self.records.content = new_record(config, splits.manifest, fitting_cost(config, splits))
        self.training = Training(config, splits, processes)
        self.metrics: dict[str, Any] = {}
        self.alarmed: set[str] = set()
        self.told_at = 0.0
        self.restored = False

    def to_the_end(self) -> dict[str, Any]:
        """Train from where the folder stands to the last step; return the record."""
        if self.processes.first:
            clear_half_written(self.folder)
            write_atomically(self.folder / "config.yaml", self.config.to_yaml())
        self.restore()
        self.records.update(status="running")
        try:
            with self.reporting() as report:
                self.train(report)
        except NonFiniteLoss as error:
            self.fail(error)
        except Interrupted as interrupted:
            self.records.update(status="interrupted", error=f"stopped by a signal at step {interrupted.step}")
            raise
        return self.finish()

    def reporting(self) -> AbstractContextManager[Any]:
        """Return, as a context manager, what takes metrics; None where another process does."""
        if not self.processes.first:
            return nullcontext()
        return reporting(self.config, self.folder, self.training.step)

    def restore(self) -> None:
        """Continue from the newest sound checkpoint, if there is one.

        Raises:
            InputError: when the examples are not those that the run began with.
        """
        checkpoint, refused = latest_checkpoint(self.checkpoints, self.config.fingerprint())
        for sentence in refused:
            self.listener.message(sentence)
        self.processes.wait()
        self.restored = checkpoint is not None
        if checkpoint is None:
            self.records.begin_with([])
            if refused:
                self.listener.message("No sound checkpoint is left; starting from step 0.")
            return
        self.check_same(checkpoint.state["record"])
        self.records.begin_with(checkpoint.state["rows"])
        self.training.load(checkpoint)
        self.listener.message(f"Continuing from step {checkpoint.step}.")

    def check_same(self, before: dict[str, Any]) -> None:
        """Refuse other examples than a run began with, and say where other code computes from here on."""
        now = self.records.content
        for name in ("train_sha256", "validation_sha256", "test_sha256", "model_sha256"):
            if before["data"].get(name) != now["data"].get(name):
                raise InputError(
                    f"The run in {self.folder} began with other data ({name.removesuffix('_sha256')} "
                    "differs); put it back, or train anew in another folder with --out."
                )
        changed = [
            f"{key} {was} before, {now['computed_by'].get(key)} from here on"
            for key, was in before["computed_by"].items()
            if now["computed_by"].get(key) != was
        ]
        now["notes"] = list(dict.fromkeys([*before["notes"], *now["notes"]]))
        if changed:
            sentence = f"Continued under other code, so last digits may differ: {'; '.join(changed)}."
            now["notes"].append(sentence)
            self.listener.message(sentence)

    def train(self, report: Any) -> None:
        """Advance to the last step, evaluating and saving on the way."""
        training, config = self.training, self.config.training
        if not self.restored:
            self.evaluate(report)
        while training.step < config.steps and not training.early_stopping.should_stop:
            training.advance()
            self.tell()
            if training.step % config.eval_every == 0 or training.step == config.steps:
                self.evaluate(report)
            self.stop_if_asked()

    def evaluate(self, report: Any) -> None:
        """Measure, record, save, and raise an alarm where masks have collapsed."""
        training = self.training
        self.metrics = training.evaluate(twice=training.step == self.config.training.steps)
        self.records.append(self.metrics)
        if report is not None:
            report(self.metrics, training.step)
        best = training.early_stopping.update(training.step, training.deciding(self.metrics))
        checkpoint = self.checkpoint()
        if self.processes.first:
            # The best first: a kill between the two must not leave a run that counts on a best it lacks.
            if best and self.config.training.early_stopping:
                save_checkpoint(self.checkpoints, checkpoint, name="best")
            save_checkpoint(self.checkpoints, checkpoint, keep=self.config.training.keep_checkpoints)
        self.processes.wait()
        if training.step >= ALARM_FROM * self.config.training.steps:
            for alarm in collapsed_masks(self.metrics):
                if alarm not in self.alarmed:
                    self.alarmed.add(alarm)
                    self.listener.message(f"Step {training.step}: {alarm}")
        self.tell(now=True)

    def checkpoint(self) -> Checkpoint:
        """Return everything that the rest of the run, and its two record files, can be made from again."""
        checkpoint = self.training.checkpoint()
        kept = {"record": self.records.content, "rows": self.records.rows}
        return replace(checkpoint, state=checkpoint.state | kept)

    def tell(self, now: bool = False) -> None:
        """Report progress, a few times a second."""
        if now or time.perf_counter() - self.told_at > SECONDS_BETWEEN_PROGRESS:
            self.told_at = time.perf_counter()
            self.listener.progress(
                RunProgress(
                    step=self.training.step,
                    steps=self.config.training.steps,
                    loss=self.training.loss.item(),
                    val_loss=self.metrics.get(f"val_{self.training.task.metrics[0].name}"),
                    keep=self.metrics.get("keep"),
                )
            )

    def stop_if_asked(self) -> None:
        """Save and raise Interrupted when a signal came to any process."""
        if self.processes.size > 1 and self.training.step % CHECK_EVERY:
            # Asking the other processes after every step would cost more than it is worth.
            return
        numbers = self.processes.gather(self.stop.signal or (signal.SIGTERM if self.asked_by_file() else 0))
        if not any(numbers):
            return
        self.training.check_finite()
        checkpoint = self.checkpoint()
        if self.processes.first:
            save_checkpoint(self.checkpoints, checkpoint, keep=self.config.training.keep_checkpoints)
        raise Interrupted(max(numbers), checkpoint.step)

    def asked_by_file(self) -> bool:
        """Return whether, at an evaluation, a file in the folder asks the run to end."""
        due = self.training.step % self.config.training.eval_every == 0
        return due and (self.folder / STOP_FILE).exists()

    def fail(self, error: NonFiniteLoss) -> None:
        """Record that the loss was not finite, and raise."""
        kept, _ = latest_checkpoint(self.checkpoints, self.config.fingerprint())
        sentence = (
            f"The loss was not finite at step {error.step}; the checkpoint of step "
            f"{kept.step if kept else 0} is kept. Try a lower --set training.lr= or "
            "--set training.precision=float32."
        )
        self.records.update(status="diverged", error=sentence)
        raise InputError(sentence)

    def finish(self) -> dict[str, Any]:
        """Restore the chosen weights, save the model, and close the record."""
        training, restored = self.training, None
        if self.config.training.early_stopping:
            best = self.best_checkpoint()
            if best.step != training.step:
                training.load_weights(best)
                restored = best.step
        if restored is not None or not self.metrics.get("evaluation_bit_equal"):
            # Stopped early, or resumed behind the last evaluation.
            self.metrics = training.evaluate(twice=True)
        with training.evaluated_weights():
            test, weights = training.test_scores(), training.whole_state()
            if self.processes.first:
                self.save(weights)
        names = (*self.metric_names(), "keep", "keep_eval", "penalty", "zeros", "evaluation_bit_equal")
        result = {
            "step": training.step,
            **{name: self.metrics[name] for name in names},
            **test,
            f"{training.task.item}s": training.items,
            "epochs": training.epochs,
            "restored_step": restored,
            "wall_seconds": training.seconds,
        }
        self.records.update(
            status="finished", result=result, alarms=collapsed_masks(self.metrics), error=None
        )
        return self.records.content

    def metric_names(self) -> list[str]:
        """Return the names of the task's metrics, as records call them."""
        metrics = self.training.task.metrics
        return [f"{use}_{metric.name}" for metric in metrics for use in ("train", "val")]

    def save(self, weights: dict[str, Tensor]) -> None:
        """Write the model and its recipe, in the task's own format where it has one."""
        folder, recipe = self.folder / "model", Recipe.from_data(self.config.recipe)
        folder.mkdir(parents=True, exist_ok=True)
        save = getattr(self.training.task, "save", None)
        if save is not None:
            save(folder, self.training.model, self.splits, recipe, weights)
            return
        write_atomically(folder / "regularization.yaml", recipe.to_yaml())
        temporary = folder / ".model.safetensors"
        write_tensors(temporary, weights, {"format": "pt"})
        temporary.replace(folder / "model.safetensors")

    def best_checkpoint(self) -> Checkpoint:
        """Return the checkpoint of the best evaluation.

        Raises:
            InputError: when it is damaged.
        """
        place = self.checkpoints / "best"
        try:
            return load_checkpoint(place, self.config.fingerprint())
        except DamagedCheckpoint as error:
            raise InputError(
                f"The best checkpoint in {place} cannot be restored: {error}; delete {self.folder} and "
                "train again."
            ) from None


def choose_threads(threads: int | None) -> None:
    """Use so many CPU threads; None leaves torch's choice."""
    if threads is not None:
        torch.set_num_threads(threads)
