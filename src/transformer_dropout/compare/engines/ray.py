"""A Ray cluster, by joblib's backend of Ray, where the user has Ray."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from joblib import Parallel, delayed, parallel_config

from ...errors import InputError
from ..cell_process import CellRunner
from ..cells import Cell, Outcome
from . import Resources


class Ray:
    """Runs cells on a Ray cluster whose machines all see the comparison's folder.

    Args:
        address: of the cluster; None for the one that this machine belongs to, or a new one here.
        resources: what a run gets.

    Raises:
        InputError: when Ray is not installed.
    """

    def __init__(self, address: str | None, resources: Resources) -> None:
        try:
            import ray  # pyrefly: ignore[missing-import]
            from ray.util.joblib import register_ray  # pyrefly: ignore[missing-import]
        except ImportError:
            raise InputError(
                "--on ray needs Ray, which is no part of this package; run: pip install ray"
            ) from None
        if not ray.is_initialized():
            ray.init(address=address)
        register_ray()
        self.resources, self.stopping = resources, False

    def run(self, cells: Sequence[Cell]) -> Iterator[Outcome]:
        """Run every cell and yield how each ended, the first to end first."""
        work = RayCell(self.resources, Path.cwd())
        pending = {cell.folder: cell for cell in cells}
        with parallel_config(backend="ray", n_jobs=self.resources.jobs or -1):
            outcomes = Parallel(return_as="generator_unordered")(delayed(work)(cell) for cell in cells)
            for outcome in outcomes:
                del pending[outcome.cell.folder]
                yield outcome
                if self.stopping:
                    # What a driver leaves running Ray ends with it, and a run ends with its worker.
                    yield from (Outcome(cell=cell, status="stopped") for cell in pending.values())
                    return

    def stop(self, number: int) -> None:
        """Start no more."""
        self.stopping = True


class RayCell:
    """What a Ray worker calls."""

    def __init__(self, resources: Resources, directory: Path) -> None:
        self.resources, self.directory = resources, directory

    def __call__(self, cell: Cell) -> Outcome:
        """Run one cell here."""
        resources = self.resources
        return CellRunner(threads=resources.threads, gpus=resources.gpus, folder=self.directory)(cell)
