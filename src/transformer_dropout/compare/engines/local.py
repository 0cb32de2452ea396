"""This machine: joblib's threads, each waiting for a process."""

import os
from collections.abc import Iterator, Sequence

from joblib import Parallel, delayed

from ..cell_process import CellRunner
from ..cells import Cell, Outcome
from ..forked_runs import ForkServer, can_fork
from ..gpus import visible_gpus
from . import Resources


class Local:
    """Runs cells as processes of this machine.

    Args:
        jobs: runs at once; None for one per core, or with GPUs for as many as these serve.
        resources: what a run gets.
    """

    def __init__(self, jobs: int | None, resources: Resources) -> None:
        self.jobs = jobs or default_jobs(resources.gpus)
        forks = ForkServer(resources.threads) if can_fork(resources.gpus) else None
        self.runner = CellRunner(threads=resources.threads, gpus=resources.gpus, forks=forks)

    def run(self, cells: Sequence[Cell]) -> Iterator[Outcome]:
        """Run every cell and yield how each ended, the first to end first."""
        parallel = Parallel(n_jobs=self.jobs, backend="threading", return_as="generator_unordered")
        yield from parallel(delayed(self.runner)(cell) for cell in cells)

    def stop(self, number: int) -> None:
        """Pass a signal on to the running cells and start no more."""
        self.runner.stop(number)


def default_jobs(gpus: int | None) -> int:
    """Return how many runs this machine takes at once."""
    visible = len(visible_gpus())
    if visible and gpus != 0:
        return max(1, visible // (gpus or 1))
    return os.cpu_count() or 1
