"""From what a user asks for to one run config an arm."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ...errors import InputError, did_you_mean
from .arms import make_arms
from .batches import steps_per_epoch
from .config import DataConfig, DType, FineTuningConfig, ModelConfig, TrainingConfig
from .pretrained import load_classifier, load_tokenizer, model_folder, weights_digest
from .run import split_digests
from .sentences import prepared_splits

# Up to so many sentences a fine-tuning needs more passes, and bears a higher learning rate.
FEW = 2000


def plan(
    model: str,
    files: Mapping[str, Path],
    *,
    arms: Sequence[str] = (),
    train_sentences: int | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    batch: int = 32,
    dtype: DType = "float32",
) -> list[FineTuningConfig]:
    """Return the run configs of some arms, their seed left at 0.

    Args:
        model: folder of a pre-trained model, or the name of the package that carries one.
        files: by class, its file of one sentence a line.
        arms: names of arms; none for all of them.
        train_sentences: how many sentences to train on, balanced by class; None for all.
        epochs: passes over them; None for 8 up to 2,000 sentences, else 3.
        lr: peak learning rate; None for 5e-5 up to 2,000 sentences, else 3e-5.
        batch: sentences in a step.
        dtype: "bfloat16" computes under autocast.

    Raises:
        InputError: for a model, file, arm or number that does not fit.
    """
    for name, value in (("--epochs", epochs), ("--batch", batch), ("--train-sentences", train_sentences)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}, but it must be at least 1.")
    splits = prepared_splits(files, train_sentences)
    folder = model_folder(model)
    load_tokenizer(folder)
    known = make_arms(load_classifier(folder, len(files), seed=0).model)
    for arm in arms:
        if arm not in known:
            raise InputError(f"There is no arm {arm!r}.{did_you_mean(arm, known)}")
    few = len(splits.train) <= FEW
    per_epoch = steps_per_epoch(len(splits.train), batch)
    training = TrainingConfig(
        steps=(epochs or (8 if few else 3)) * per_epoch,
        eval_every=per_epoch,
        batch=batch,
        dtype=dtype,
        lr=lr if lr is not None else (5e-5 if few else 3e-5),
    )
    data = DataConfig(
        files={name: str(path) for name, path in files.items()},
        train_sentences=train_sentences,
        sha256=split_digests(splits),
    )
    source = ModelConfig(source=model, sha256=weights_digest(folder))
    return [
        FineTuningConfig(name=arm, model=source, recipe=known[arm], data=data, training=training)
        for arm in (dict.fromkeys(arms) or known)
    ]
