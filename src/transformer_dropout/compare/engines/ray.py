"""A Ray cluster, where the user has Ray."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import InputError, first_line
from ..cell_process import CellRunner
from ..cells import Cell, Outcome
from . import Resources

POLL_SECONDS = 1.0


class Ray:
    """Runs cells on a Ray cluster whose machines all see the comparison's folder.

    A cell whose worker dies goes to another, at most three times, and continues from its checkpoint.

    Args:
        address: of the cluster; None for the one that this machine belongs to, or a new one here.
        resources: what a run gets.

    Raises:
        InputError: when Ray is not installed, or no cluster answers there.
    """

    def __init__(self, address: str | None, resources: Resources) -> None:
        try:
            import ray  # pyrefly: ignore[missing-import]
        except ImportError:
            raise InputError(
                "--on ray needs Ray, which is no part of this package; run: pip install ray"
            ) from None
        self.ray, self.address, self.resources = ray, address, resources
        self.jobs, self.stopping = resources.jobs, False
        self.connect()

    def connect(self) -> None:
        """Join the cluster, unless this process belongs to one."""
        if self.ray.is_initialized():
            return
        try:
            self.ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, OSError, ValueError, RuntimeError) as error:
            raise InputError(
                f"--on ray:{self.address}: no Ray cluster answers there ({first_line(error)}); start "
                "one with: ray start --head"
            ) from None

    def run(self, cells: Sequence[Cell]) -> Iterator[Outcome]:
        """Run every cell and yield how each ended, the first to end first."""
        self.connect()
        work = self.ray.remote(num_cpus=self.resources.threads, num_gpus=self.gpus)(run_cell)
        at_once = self.jobs or math.inf
        waiting, running = list(cells), {}
        while (waiting or running) and not self.stopping:
            while waiting and len(running) < at_once:
                cell = waiting.pop(0)
                running[work.remote(cell, self.resources.threads, Path.cwd())] = cell
            ended, _ = self.ray.wait(list(running), timeout=POLL_SECONDS)
            for job in ended:
                yield self.outcome(running.pop(job), job)
        yield from (Outcome(cell=cell, status="stopped") for cell in [*running.values(), *waiting])
        # What a driver leaves running ends with it, and a run ends with its worker.
        self.ray.shutdown()

    @property
    def gpus(self) -> int:
        """GPUs of a run: one where the cluster has any, unless told otherwise."""
        if self.resources.gpus is not None:
            return self.resources.gpus
        return int("GPU" in self.ray.cluster_resources())

    def outcome(self, cell: Cell, job: Any) -> Outcome:
        """Return how a cell ended; the folder is the truth, whatever Ray says."""
        try:
            return self.ray.get(job)
        except self.ray.exceptions.RayError as error:
            if cell.finished:
                return Outcome(cell=cell, status="finished")
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return Outcome(cell=cell, status="failed", reason=reason)

    def stop(self, number: int) -> None:
        """Start no more."""
        self.stopping = True


def run_cell(cell: Cell, threads: int, folder: Path) -> Outcome:
    """Run one cell on a worker, which Ray gives GPUs of its own."""
    return CellRunner(threads=threads, shares_gpus=False, folder=folder)(cell)
