"""Options that several commands share."""

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
StepsOption = Annotated[int | None, typer.Option("--steps", metavar="N", help="Optimizer steps.")]


def dotted_changes(
    changes: list[str] | None, data: str | None = None, steps: int | None = None
) -> dict[str, str]:
    """Return the dotted keys that a command line changes, with their values as text.

    Raises:
        InputError: for a ``--set`` without an equals sign.
    """
    dotted = {}
    if data is not None:
        dotted["data.source"] = data
    if steps is not None:
        dotted["training.steps"] = str(steps)
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
