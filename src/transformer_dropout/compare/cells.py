"""One cell of a comparison: one arm, one seed, one process, one run folder."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from ..runs.files import write_atomically
from ..runs.record import read_run


class CellConfig(Protocol):
    """What a cell asks of a run config: a dataclass that can be written and told apart."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def training(self) -> Any: ...
    def to_yaml(self) -> str: ...
    def fingerprint(self) -> str: ...
    def slug(self) -> str: ...


TRAINING = "transformer_dropout.runs"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a comparison.

    Attributes:
        config: the run config with its seed.
        folder: the run folder.
        module: the module whose ``python -m`` trains such a folder.
    """

    config: CellConfig
    folder: Path
    module: str = TRAINING

    @property
    def name(self) -> str:
        """The run's name for people."""
        return f"{self.config.name}, seed {self.config.seed}"

    @property
    def finished(self) -> bool:
        """Whether the folder holds this run, finished."""
        record = read_run(self.folder)
        return (
            record is not None
            and record.get("status") == "finished"
            and record.get("fingerprint") == self.config.fingerprint()
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a cell ended.

    Attributes:
        status: ``stopped`` when somebody asked to stop before it was done.
        reason: one sentence when it failed.
    """

    cell: Cell
    status: Literal["finished", "failed", "stopped"]
    reason: str = ""


def make_cells(
    arms: Sequence[CellConfig], seeds: list[int], folder: Path, *, module: str = TRAINING
) -> list[Cell]:
    """Return the cells, seed by seed, so that an early look compares all arms."""
    return [
        Cell(
            config=replace(arm, seed=seed),
            folder=folder / "runs" / arm.slug() / f"seed-{seed}",
            module=module,
        )
        for seed in seeds
        for arm in arms
    ]


class CellRunner:
    """Runs cells as processes, and passes a request to stop on to those that are running.

    Args:
        on_event: called with the cell and each event its process tells.
        threads: CPU threads of a process.
    """

    def __init__(self, on_event: Callable[[Cell, dict], None], threads: int = 1) -> None:
        self.on_event, self.threads = on_event, threads
        self.stopping: int | None = None
        self._running: set[subprocess.Popen] = set()
        self._guard = threading.Lock()

    def stop(self, number: int) -> None:
        """Send a signal to every running cell and start no more."""
        self.stopping = number
        # No lock: a signal handler may interrupt the thread that holds it.
        for process in list(self._running):
            process.send_signal(number)

    def __call__(self, cell: Cell) -> Outcome:
        """Run one cell to its end, whatever that is."""
        if cell.finished:
            return Outcome(cell=cell, status="finished")
        if self.stopping is not None:
            return Outcome(cell=cell, status="stopped")
        cell.folder.mkdir(parents=True, exist_ok=True)
        if read_run(cell.folder) is None:
            write_atomically(cell.folder / "config.yaml", cell.config.to_yaml())
        code = self._run_process(cell)
        if cell.finished:
            return Outcome(cell=cell, status="finished")
        if self.stopping is not None:
            return Outcome(cell=cell, status="stopped")
        return Outcome(cell=cell, status="failed", reason=why(cell.folder / "log.txt", code))

    def _run_process(self, cell: Cell) -> int:
        command = [sys.executable, "-m", cell.module, str(cell.folder)]
        command += ["--threads", str(self.threads)]
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        with (cell.folder / "log.txt").open("w", encoding="utf-8") as log:
            # Its own session: Ctrl-C reaches it once, through `stop`.
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                start_new_session=True,
            )
            with self._guard:
                self._running.add(process)
            if self.stopping is not None:
                process.send_signal(self.stopping)
            with process:
                assert process.stdout is not None
                for line in process.stdout:
                    self.on_event(cell, json.loads(line))
            with self._guard:
                self._running.discard(process)
        return process.returncode


def why(log: Path, code: int) -> str:
    """Return the last line that a failed process wrote, and where the rest is."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if code < 0:
        return f"killed by signal {-code}; see {log}"
    return f"{lines[-1]} ({log})" if lines else f"exit code {code}; see {log}"
