"""A fine-tuning run in its folder: finished once, started over when it was not."""

from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ...errors import InputError
from ...runs.evaluate import collapsed_masks
from ...runs.files import clear_write_errors, write_atomically
from ...runs.listener import Listener, Progress
from ...runs.loop import Diverged
from ...runs.record import Records, machine, read_run, versions
from .config import DataConfig, FineTuningConfig
from .loop import FineTuning
from .pretrained import model_folder, of_transformers, weights_digest
from .sentences import Splits, digest, prepared_splits

FORMAT = 1


def run(config: FineTuningConfig, folder: Path, *, listener: Listener | None = None) -> dict[str, Any]:
    """Fine-tune one config in its folder and return the content of its ``run.json``.

    A finished run is returned as it is. One that was stopped starts over: it takes minutes.

    Args:
        config: what to train.
        folder: its run folder.
        listener: whom to tell.

    Raises:
        InputError: when the config does not fit, model or sentences are other ones than it says, the folder
            holds another run or is in use, or the loss stops being finite.
    """
    record = read_run(folder)
    if record is not None and record.get("fingerprint") != config.fingerprint():
        raise InputError(f"{folder} holds another run ({record.get('name')!r}); choose another folder.")
    if record is not None and record.get("status") == "finished":
        return record
    splits = checked_splits(config)
    with clear_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / ".run.lock", blocking=False):
                write_atomically(folder / "config.yaml", config.to_yaml())
                return train(config, splits, Records(folder, writes=True), listener or Listener())
        except Timeout:
            raise InputError(f"Another process is running in {folder}; wait for it, or stop it.") from None


def checked_splits(config: FineTuningConfig) -> Splits:
    """Return the sentences of a config.

    Raises:
        InputError: when they, or the model's weights, have changed since the config was made.
    """
    if weights_digest(model_folder(config.model.source)) != config.model.sha256:
        raise InputError(f"The weights of {config.model.source} are not those that the run config names.")
    splits = splits_of(config.data)
    if split_digests(splits) != config.data.sha256:
        raise InputError("The files of sentences are not those that the run config was made for.")
    return splits


def splits_of(data: DataConfig) -> Splits:
    """Read the sentences that a config names."""
    return prepared_splits({name: Path(path) for name, path in data.files.items()}, data.train_sentences)


def split_digests(splits: Splits) -> dict[str, str]:
    """Return the digest of each split."""
    return {name: digest(part) for name, part in vars(splits).items()}


def train(config: FineTuningConfig, splits: Splits, records: Records, listener: Listener) -> dict[str, Any]:
    """Train to the last step, evaluating on the way; return the record."""
    training = FineTuning(config, splits)
    records.content = new_record(config, training)
    records.forget_after(-1)
    records.update(status="running")
    settings, metrics = config.training, {}
    try:
        while training.step < settings.steps:
            training.advance()
            if training.step % settings.eval_every == 0 or training.step == settings.steps:
                metrics = training.evaluate()
                records.append(metrics)
            listener.progress(
                Progress(
                    step=training.step,
                    steps=settings.steps,
                    loss=training.loss,
                    val_loss=metrics.get("val_loss"),
                    keep=metrics.get("keep"),
                )
            )
    except Diverged as error:
        sentence = f"The loss was not finite at step {error.step}; try a lower --lr."
        records.update(status="diverged", error=sentence)
        raise InputError(sentence) from None
    records.update(status="finished", result=result(training, metrics), alarms=collapsed_masks(metrics))
    return records.content


def result(training: FineTuning, metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the end of a run, which is its last step; only here the test split is looked at."""
    again, test = training.score(training.validation), training.score(training.test)
    names = ("train_loss", "val_loss", "train_accuracy", "val_accuracy", "keep", "keep_eval", "penalty")
    return {
        "step": training.step,
        **{name: metrics[name] for name in names},
        "test_loss": test.loss,
        "test_accuracy": test.accuracy,
        "evaluation_bit_equal": (again.loss, again.accuracy)
        == (metrics["val_loss"], metrics["val_accuracy"]),
        "tokens": training.tokens,
        "epochs": training.epochs,
        "restored_step": None,
        "wall_seconds": training.seconds,
    }


def new_record(config: FineTuningConfig, training: FineTuning) -> dict[str, Any]:
    """Return the content of ``run.json`` at the start of a run."""
    layers = {p for placed in training.regularization.placed for p in placed.layer.parameters()}
    trained = [p for p in training.model.parameters() if p.requires_grad]
    parts = {"train": training.train, "validation": training.validation, "test": training.test}
    return {
        "format": FORMAT,
        "status": "running",
        "name": config.name,
        "seed": config.seed,
        "fingerprint": config.fingerprint(),
        "config": config.to_data(),
        "versions": versions() | {"transformers": of_transformers("__version__")},
        "machine": machine(),
        "data": {
            "source": f"sentences of {len(config.data.files)} classes: {', '.join(config.data.files)}",
            "tokenizer": Path(config.model.source).name,
            "vocabulary_size": len(training.tokenizer),
            **{name: {"documents": len(part), "tokens": sum(part.lengths)} for name, part in parts.items()},
            **{f"{name}_sha256": value for name, value in config.data.sha256.items()},
        },
        "parameters": {
            "total": sum(p.numel() for p in trained),
            "regularizer": sum(p.numel() for p in layers),
        },
        "flops": training.count_flops(),
        "alarms": [],
        "notes": [],
        "error": None,
        "result": None,
    }
