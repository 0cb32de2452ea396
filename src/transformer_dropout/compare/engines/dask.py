"""Any Dask cluster: workers that somebody started over SSH, on Kubernetes or by a job queue."""

import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from ...errors import InputError, first_line
from ..cell_process import CellRunner
from ..cells import Cell, Outcome
from ..progress import PROGRESS_FILE, write_progress
from . import Resources
from .folders import SMALL_FILES, folder_id, own_folder

POLL_SECONDS = 0.2
CONNECT_SECONDS = 20
TOPIC = "transformer-dropout-progress"


class Dask:
    """Runs cells on the workers of a Dask cluster; one whose worker dies goes to another worker.

    Args:
        address: of the scheduler, such as ``tcp://head:8786``, or its ``.json`` file.
        folder: the comparison's folder.
        resources: what a run gets.

    Raises:
        InputError: when Dask is not installed, or nobody answers there.
    """

    def __init__(self, address: str, folder: Path, resources: Resources) -> None:
        self.address, self.folder, self.resources = address, folder.resolve(), resources
        self.jobs: int | None = None
        self.stopping = False
        self.client = self.connected()

    def connected(self) -> Any:
        """Return a client of the cluster."""
        try:
            from distributed import Client
        except ImportError:
            raise InputError("--on dask: needs Dask; run: pip install 'transformer-dropout[dask]'") from None
        place = {"scheduler_file" if self.address.endswith(".json") else "address": self.address}
        try:
            return Client(**place, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            raise InputError(
                f"--on dask:{self.address}: no Dask scheduler answers there ({first_line(error)}); start "
                "one with: dask scheduler"
            ) from None

    def run(self, cells: Sequence[Cell]) -> Iterator[Outcome]:
        """Run every cell and yield how each ended, the first to end first."""
        if self.client.status != "running":
            # An earlier call closed it.
            self.client = self.connected()
        with self.client as client:
            topic = f"{TOPIC}-{uuid4()}"
            client.subscribe_topic(topic, self._write_progress)
            work = WorkerCell(
                topic=topic,
                root=self.folder,
                id=folder_id(self.folder),
                directory=Path.cwd(),
                resources=self.resources,
            )
            # A key of its own for every call: one that is being stopped must not be taken for the new one.
            pending = {
                client.submit(
                    work, cell, pure=False, key=f"{cell.config.slug()}-{cell.config.seed}-{uuid4()}"
                ): cell
                for cell in cells
            }
            while pending and not self.stopping:
                ended = [future for future in pending if future.done()]
                for future in ended:
                    yield self._outcome(pending.pop(future), future)
                if not ended:
                    time.sleep(POLL_SECONDS)
            client.cancel(list(pending))
            yield from (Outcome(cell=cell, status="stopped") for cell in pending.values())

    def stop(self, number: int) -> None:
        """Let the workers' cells save and end, and start no more."""
        self.stopping = True

    def _outcome(self, cell: Cell, future: Any) -> Outcome:
        error = future.exception()
        if error is not None:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return Outcome(cell=cell, status="failed", reason=reason)
        outcome, files = future.result()
        if files:
            cell.folder.mkdir(parents=True, exist_ok=True)
            for name in SMALL_FILES:
                if name in files:
                    # The record comes last: it says that the rest is there.
                    (cell.folder / name).write_bytes(files[name])
        return replace(outcome, cell=cell)

    def _write_progress(self, event: tuple[float, dict[str, str]]) -> None:
        """Put the progress of a run that has no shared storage into the folder here."""
        told = event[1]
        place = self.folder / told["folder"]
        place.mkdir(parents=True, exist_ok=True)
        write_progress(place / PROGRESS_FILE, told["text"])


@dataclass(frozen=True, kw_only=True)
class WorkerCell:
    """What a worker calls: run one cell here, in its folder or, where that is not to be seen, in an own one.

    Attributes:
        topic: where progress goes when the folder is not shared.
        root: the comparison's folder on the machine that asked.
        id: what that folder is told by.
        directory: where relative paths of a config begin there.
        resources: what a run gets.
    """

    topic: str
    root: Path
    id: str
    directory: Path
    resources: Resources

    def __call__(self, cell: Cell) -> tuple[Outcome, dict[str, bytes]]:
        """Return how the cell ended, and the small files of a folder that the asking machine cannot see."""
        from distributed import get_worker

        worker = get_worker()
        place = cell.folder.relative_to(self.root)
        shared = folder_id(self.root) == self.id
        here = cell if shared else replace(cell, folder=own_folder(self.id) / place)

        def tell(text: str) -> None:
            worker.log_event(self.topic, {"folder": str(place), "text": text})

        runner = CellRunner(
            threads=self.resources.threads,
            gpus=self.resources.gpus,
            folder=self.directory,
            on_progress=None if shared else tell,
        )
        ended = threading.Event()
        # A thread of Dask's knows which task it runs; the one that watches is none.
        watched = (runner, worker, worker.get_current_task(), ended)
        threading.Thread(target=stop_when_cancelled, args=watched, daemon=True).start()
        try:
            outcome = runner(here)
        finally:
            ended.set()
        if shared:
            return outcome, {}
        if outcome.status == "failed":
            outcome = replace(outcome, reason=f"{outcome.reason} on {socket.gethostname()}")
        files = {name: here.folder / name for name in SMALL_FILES}
        return outcome, {name: path.read_bytes() for name, path in files.items() if path.is_file()}


def stop_when_cancelled(runner: CellRunner, worker: Any, key: str, ended: threading.Event) -> None:
    """Stop a run that nobody waits for any more: cancelled, or the process that asked for it is gone.

    Dask itself lets what has begun go on to its end.
    """
    while not ended.wait(POLL_SECONDS):
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled":
            runner.stop(signal.SIGTERM)
            return
