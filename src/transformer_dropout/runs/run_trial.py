"""Runs the user's own training as a trial, and records how it ended."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import InputError
from ..recipe import Recipe
from ..surgery.regularize import Regularization
from .listener import Listener
from .record import read_run
from .run import Interrupted
from .trial import Diverged, Trial
from .trial_command import run_command
from .trial_config import TrialConfig, digests, find_function


class Failed(InputError):
    """The user's own code raised; its traceback has been told."""


def run_trial(config: TrialConfig, folder: Path, listener: Listener) -> dict[str, Any]:
    """Run a trial in its folder to its end and return the content of its ``run.json``.

    Raises:
        InputError: when the training fails, is not what it was, or another process is in the folder.
        Interrupted: when a signal asked to stop.
    """
    record = read_run(folder)
    if record is not None and record.get("fingerprint") == config.fingerprint():
        if record.get("status") == "finished":
            return record
    elif record is not None:
        raise InputError(f"{folder} holds another run; choose another folder with --out.")
    check_programs(config.programs)
    try:
        with FileLock(folder / ".run.lock").acquire(blocking=False):
            trial = Trial.of(config, folder, listener)
            with recorded_end(trial), noted_placements() as placed:
                if config.command is not None:
                    run_command(config.command, trial)
                else:
                    call(find_function(config.function or ""), trial)
                if config.function is not None:
                    trial.records.content["checks"]["recipe_applied"] = recipe_was_placed(
                        trial.recipe, placed
                    )
                if not trial.finished:
                    trial.finish()
                else:
                    trial.records.update()
            return trial.records.content
    except Timeout:
        raise InputError(f"Another process is running in {folder}; wait for it, or stop it.") from None


def check_programs(programs: dict[str, str]) -> None:
    """Raise InputError when a file that is called is not what it was when the comparison began."""
    for name, digest in programs.items():
        path = Path(name)
        if not path.is_file():
            raise InputError(
                f"There is no {path} on this machine; put it where it was, or use shared storage."
            )
        if digests([path])[name] != digest:
            raise InputError(
                f"{path} has changed since the comparison began; compare its new version with another --out."
            )


def call(function: Any, trial: Trial) -> None:
    """Call the user's function; a script's ``sys.exit(0)`` is an end like any other.

    Raises:
        Failed: when it raises anything else than an InputError.
    """
    try:
        function(trial)
    except (InputError, Interrupted, KeyboardInterrupt):
        raise
    except SystemExit as end:
        if end.code not in (None, 0):
            raise Failed(f"The training ended with sys.exit({end.code!r}).") from None
    except Exception as error:
        traceback.print_exc()
        words = " ".join(str(error).split())
        raise Failed(f"{type(error).__name__}: {words}" if words else type(error).__name__) from None


@contextmanager
def recorded_end(trial: Trial) -> Iterator[None]:
    """Write into the record how a trial failed, when it does."""
    try:
        yield
    except Diverged as error:
        trial.records.update(status="diverged", error=str(error))
        raise
    except InputError as error:
        trial.records.update(status="failed", error=str(error))
        raise
    except (Interrupted, KeyboardInterrupt) as error:
        number = error.signal if isinstance(error, Interrupted) else 2
        trial.records.update(status="interrupted", error=f"stopped by a signal at step {trial.step}")
        raise Interrupted(number, trial.step) from None


@contextmanager
def noted_placements() -> Iterator[list[Regularization]]:
    """Yield a list to which every regularization that is made inside the ``with`` block is added."""
    found: list[Regularization] = []
    make = Regularization.__init__

    def noting(self: Regularization, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        found.append(self)

    Regularization.__init__ = noting  # type: ignore[method-assign]
    try:
        yield found
    finally:
        Regularization.__init__ = make  # type: ignore[method-assign]


def recipe_was_placed(recipe: Recipe, made: list[Regularization]) -> bool:
    """Return whether the trial's recipe, and no other, was placed while it ran."""
    placed = [handle.recipe for handle in made if handle.placed]
    return bool(placed) == bool(recipe.rules) and all(each == recipe for each in placed)
