"""A cell as a process of its own, on whatever machine this code is called."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from ..errors import InputError
from ..runs.files import write_atomically
from ..runs.record import read_run
from .cells import TRAINING, Cell, Outcome
from .forked_runs import ForkedRun, ForkServer
from .gpus import taken_gpus
from .progress import ProgressFile

# How long a cell waits between two looks at whether another process has left its folder.
SECONDS_BETWEEN_TRIES = 0.2
# How long a run that was asked to stop may take for its last step and its checkpoint.
SECONDS_TO_STOP = 60


class CellRunner:
    """Runs cells as processes, and passes a request to stop on to those that are running.

    A process ends with the one that runs it, and one that finds its folder in use waits: so a run can be
    taken up on another machine while the last signs of its first process are still there.

    Args:
        threads: CPU threads of a process.
        gpus: GPUs of a process; None for one where there is any.
        shares_gpus: whether runs that know nothing of each other compute on these GPUs; a scheduler that
            gives each its own makes waiting needless.
        folder: where processes work, if it is there; relative paths of a config begin in it.
        on_progress: called with the content of a progress file whenever that is written.
        forks: what starts run configs without importing everything again; None to start each anew.
    """

    def __init__(
        self,
        *,
        threads: int = 1,
        gpus: int | None = None,
        shares_gpus: bool = True,
        folder: Path | None = None,
        on_progress: Callable[[str], None] | None = None,
        forks: ForkServer | None = None,
    ) -> None:
        self.threads, self.gpus, self.shares_gpus = threads, gpus, shares_gpus
        self.folder, self.on_progress, self.forks = folder, on_progress, forks
        self.stopping: int | None = None
        self._running: set[subprocess.Popen | ForkedRun] = set()
        self._guard = threading.Lock()

    def stop(self, number: int) -> None:
        """Send a signal to every running cell and start no more."""
        self.stopping = number
        # No lock: a signal handler may interrupt the thread that holds it.
        for process in list(self._running):
            process.send_signal(number)

    def stop_and_wait(self) -> None:
        """Let every running cell save what it has, and end."""
        self.stop(signal.SIGTERM)
        for process in list(self._running):
            process.wait(SECONDS_TO_STOP)

    def __call__(self, cell: Cell) -> Outcome:
        """Run one cell to its end, whatever that is."""
        if cell.finished:
            return Outcome(cell=cell, status="finished")
        if self.stopping is not None:
            return Outcome(cell=cell, status="stopped")
        cell.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(cell.folder.with_name(f".{cell.folder.name}.lock"))
        while self.stopping is None:
            try:
                with lock.acquire(timeout=SECONDS_BETWEEN_TRIES):
                    return self._run_alone(cell, Path(lock.lock_file))
            except Timeout:
                continue
        return Outcome(cell=cell, status="stopped")

    def _run_alone(self, cell: Cell, lock: Path) -> Outcome:
        # Whoever held the folder before may have finished it.
        if not cell.finished:
            if read_run(cell.folder) is None:
                write_atomically(cell.folder / "config.yaml", cell.config.to_yaml())
            try:
                code = self._run_on_gpus(cell)
            except InputError as error:
                return Outcome(cell=cell, status="failed", reason=str(error))
            if self.stopping is not None and not cell.finished:
                return Outcome(cell=cell, status="stopped")
            if not cell.finished:
                return Outcome(cell=cell, status="failed", reason=why(cell.folder / "log.txt", code))
        lock.unlink(missing_ok=True)
        return Outcome(cell=cell, status="finished")

    def _run_on_gpus(self, cell: Cell) -> int:
        if not self.shares_gpus:
            return self._run_process(cell, {})
        with taken_gpus(self.gpus, lambda: self.stopping is not None) as environment:
            return self._run_process(cell, environment) if self.stopping is None else 0

    def _run_process(self, cell: Cell, environment: dict[str, str]) -> int:
        progress = ProgressFile(cell.folder, self.on_progress)
        with (cell.folder / "log.txt").open("w", encoding="utf-8") as log:
            process = self._started(cell, environment, log)
            with self._guard:
                self._running.add(process)
            if self.stopping is not None:
                process.send_signal(self.stopping)
            assert process.stdout is not None and process.stdin is not None
            for line in process.stdout:
                progress.take(json.loads(line))
            code = process.wait()
            process.stdin.close()
            process.stdout.close()
            with self._guard:
                self._running.discard(process)
        progress.write()
        return code

    def _started(self, cell: Cell, environment: dict[str, str], log: IO[str]) -> subprocess.Popen | ForkedRun:
        """Start a run: its own session, so that Ctrl-C reaches it once, through `stop`.

        Its standard input is held open and never written to: it closes when this process ends.
        """
        arguments = [str(cell.folder), "--threads", str(self.threads), "--end-with-parent"]
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)} | environment
        folder = self.folder if self.folder is not None and self.folder.is_dir() else Path.cwd()
        if self.forks is not None and cell.module == TRAINING:
            forked = self.forks.start(arguments, log, environment, folder)
            if forked is not None:
                return forked
        return subprocess.Popen(
            [sys.executable, "-m", cell.module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )


def why(log: Path, code: int) -> str:
    """Return the last line that a failed process wrote, and where the rest is."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if code < 0:
        return f"killed by signal {-code}; see {log}"
    return f"{lines[-1]} ({log})" if lines else f"exit code {code}; see {log}"
