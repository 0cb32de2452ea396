"""Options that several commands share."""

import os
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one key, e.g. training.lr=3e-4; may be repeated."
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="SOURCE",
        help="stdlib-docs, stdlib-code, a text file, a folder of text files, or dataset:NAME.",
    ),
]
TaskOption = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="TASK",
        help="What is trained, with its own arms: language, sentences, images ..., or my_task.py.",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", metavar="DIR", help="Folder of the pre-trained model that a task fine-tunes."),
]
LoraOption = Annotated[
    int | None, typer.Option("--lora", metavar="RANK", help="Train LoRA's matrices of this rank alone.")
]
StepsOption = Annotated[int | None, typer.Option("--steps", metavar="N", help="Optimizer steps.")]


SHORTHANDS = {
    "data": "data.source",
    "steps": "training.steps",
    "model": "model.source",
    "lora": "model.lora",
}


def usable_folder(folder: Path | None) -> Path | None:
    """Return a folder that a command is to write to; the system says what is wrong with it.

    Raises:
        InputError: for a file, a place that cannot be written to, and a user's home that nobody has expanded.
        OSError: for a path that is too long, leads in a circle, or through a file.
    """
    if folder is None:
        return None
    if str(folder).startswith("~"):
        raise InputError(f"--out {folder}: there is no such user's home; write the path in full.")
    there = folder
    while not is_there(there):
        there = there.parent
    if not there.is_dir():
        raise InputError(f"--out {folder}: {there} is a file; name a folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"--out {folder}: you may not write to {there}; choose another folder.")
    return folder


def is_there(path: Path) -> bool:
    """Return whether something lies at a path; raise OSError for one that cannot be followed."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def dotted_changes(changes: list[str] | None, **options: object) -> dict[str, str]:
    """Return the dotted keys that a command line changes, with their values as text.

    Args:
        changes: what stood behind each ``--set``.
        options: values of options that stand for one key, by a name in `SHORTHANDS`; None where not given.

    Raises:
        InputError: for a ``--set`` without an equals sign.
    """
    dotted = {SHORTHANDS[name]: str(value) for name, value in options.items() if value is not None}
    for change in changes or []:
        key, equals, value = change.partition("=")
        if not equals or not key:
            raise InputError(
                f"--set {change!r} has no value; write --set KEY=VALUE, e.g. --set training.lr=3e-4."
            )
        dotted[key] = value
    return dotted


def model_folder(run: Path) -> Path:
    """Return the folder of the saved model of a run, given the run folder or the model folder itself.

    Raises:
        InputError: when the run holds no model yet.
    """
    for folder in (run / "model", run):
        if (folder / "model.safetensors").is_file():
            return folder
    if (run / "run.json").is_file():
        raise InputError(
            f"The run in {run} is not finished; continue it with: "
            f"dropout train {run}/config.yaml --out {run} --resume"
        )
    raise InputError(f"{run} holds no run; give the folder that dropout train wrote.")
