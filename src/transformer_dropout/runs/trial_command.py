"""A trial that is a command of any kind: it prints JSON lines, or writes them into its folder."""

import json
import signal
import string
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from ..errors import InputError
from .files import write_atomically
from .run import STOP_FILE, Interrupted
from .stop_signals import StopRequest, stop_requests
from .trial import Trial
from .trial_config import split_command

RECIPE_FILE = "recipe.yaml"
KEPT_LINES = 20
SECONDS_BETWEEN_LOOKS = 0.1


def check_command(command: str, settings: set[str], *, has_recipes: bool) -> None:
    """Refuse a command that could not tell seeds or arms apart.

    Raises:
        InputError: naming the placeholder that it lacks, or that nobody fills.
    """
    words = split_command(command)
    try:
        named = {
            name for word in words for _, name, _, _ in string.Formatter().parse(word) if name is not None
        }
    except ValueError as error:
        raise InputError(f"--run {command!r}: {error}; write {{{{ and }}}} for braces.") from None
    known = {"seed", "recipe", "out", "folder", "name", "steps", *settings}
    if named - known:
        raise InputError(
            f"--run: nobody fills {{{min(named - known)}}}; there are: {', '.join(sorted(known))}."
        )
    if not words:
        raise InputError("--run names no command.")
    if "seed" not in named:
        raise InputError("--run: without {seed} in the command all seeds of an arm would be one run.")
    if has_recipes and "recipe" not in named:
        raise InputError("--run: some arms have a recipe, and the command takes no {recipe}.")


def run_command(command: str, trial: Trial) -> None:
    """Run a trial's command to its end and record what it says.

    Rows of metrics are lines of JSON with a ``step`` that it prints, unless it writes a ``metrics.jsonl`` of
    its own into the folder.

    Raises:
        InputError: when it fails; the last lines that it printed are recorded with its exit code.
    """
    recipe = trial.folder / RECIPE_FILE
    recipe.write_text(trial.recipe.to_yaml(), encoding="utf-8")
    place = str(trial.folder)
    names = {"seed": trial.seed, "recipe": recipe, "out": place, "folder": place, "steps": trial.steps}
    names |= {"name": trial.records.content["name"], **trial.settings}
    words = [word.format_map(names) for word in split_command(command)]
    started, last = time.perf_counter(), deque[str](maxlen=KEPT_LINES)
    try:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        raise InputError(
            f"--run: {words[0]!r} cannot be started: {(error.strerror or '').lower()}."
        ) from None
    with stop_requests() as stop, process:
        threading.Thread(target=pass_on, args=(stop, process, trial.folder), daemon=True).start()
        try:
            read_output(process, trial, last)
        except BaseException:
            # What it trains is of no use any more, and leaving would wait for its end.
            process.terminate()
            raise
    trial.records.update(
        command={
            "words": words,
            "exit_code": process.returncode,
            "last_lines": list(last),
            "seconds": time.perf_counter() - started,
        }
    )
    if stop.signal is not None:
        raise Interrupted(stop.signal, trial.step)
    if process.returncode:
        reason = next((line for line in reversed(last) if line.strip()), "it printed nothing")
        raise InputError(f"The command ended with exit code {process.returncode}: {reason}")
    if writes_itself(trial):
        take_rows(trial)


def read_output(process: subprocess.Popen, trial: Trial, last: deque[str]) -> None:
    """Pass a command's output on to the log, keep its last lines, and report the rows among them."""
    assert process.stdout is not None
    for raw in process.stdout:
        line = raw.decode("utf-8", "replace").rstrip()
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
        last.append(line)
        row = row_of(line)
        if row is not None and not writes_itself(trial):
            trial.records.content["task"]["rows"] = "output"
            trial.report(**row)


def pass_on(stop: StopRequest, process: subprocess.Popen, folder: Path) -> None:
    """Pass a request to stop, a signal or a file in the folder, on to the command."""
    while process.poll() is None:
        if stop.signal is not None or (folder / STOP_FILE).exists():
            process.send_signal(stop.signal or signal.SIGTERM)
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)


def row_of(line: str) -> dict[str, Any] | None:
    """Return a printed line as a row of metrics, if it is one."""
    if not line.startswith("{"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return numbers_of(row) if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def numbers_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a row; words and lists in it are no metrics."""
    return {name: value for name, value in row.items() if isinstance(value, int | float)}


def writes_itself(trial: Trial) -> bool:
    """Return whether the command has begun a ``metrics.jsonl`` of its own."""
    printed = trial.records.content["task"].get("rows") == "output"
    return not printed and (trial.folder / "metrics.jsonl").exists()


def take_rows(trial: Trial) -> None:
    """Report the rows that the command wrote.

    Raises:
        InputError: for a line that is no row of metrics.
    """
    path = trial.folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [row_of(line) for line in lines]
    for number, row in enumerate(rows):
        if row is None:
            raise InputError(
                f'{path}:{number + 1} is no row of metrics; write {{"step": 10, "val_loss": 1.5}}.'
            )
    merged = {}
    for row in rows:
        assert row is not None
        merged[row["step"]] = trial.note(row["step"], {k: v for k, v in row.items() if k != "step"})
    write_atomically(path, "".join(json.dumps(merged[step]) + "\n" for step in sorted(merged)))
