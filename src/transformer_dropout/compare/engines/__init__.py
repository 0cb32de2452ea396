"""Where the runs of a comparison are computed: on this machine, or on a cluster that is there already.

Each engine maps cells to outcomes by a library that people run their clusters with; what a cell is, and that
its folder is the truth, is the same on all of them. None of them schedules anything itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ...errors import InputError
from ..cells import Cell, Outcome

FORMS = "local:N, dask:ADDRESS, slurm:PARTITION or ray"


class Engine(Protocol):
    """Runs the cells of a comparison; asked again, as a search asks it, it runs others."""

    @property
    def jobs(self) -> int | None:
        """Runs at once; None where a cluster decides."""
        ...

    def run(self, cells: Sequence[Cell]) -> Iterator[Outcome]:
        """Run every cell, several at once, and yield how each ended, the first to end first."""
        ...

    def stop(self, number: int) -> None:
        """Let the running cells save and end, as on this signal, and start no more; called by its handler."""
        ...


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one run gets, and how many there are at once.

    Attributes:
        jobs: runs at once; None for what the engine finds.
        threads: CPU threads of a run.
        gpus: GPUs of a run; None for one where there is any.
    """

    jobs: int | None = None
    threads: int = 1
    gpus: int | None = None


def choose_engine(on: str | None, folder: Path, resources: Resources = Resources()) -> Engine:
    """Return the engine that a text such as ``dask:tcp://head:8786`` names.

    Args:
        on: the text; None for this machine.
        folder: the comparison's folder.
        resources: what a run gets.

    Raises:
        InputError: for a text that names none, or a package that is not installed.
    """
    kind, colon, rest = ("local" if on is None else on).partition(":")
    if kind == "local" and (rest or not colon):
        from .local import Local

        return Local(jobs_of(rest, on, resources), resources)
    if kind == "dask" and rest:
        from .dask import Dask

        refuse_jobs(resources, on, "the cluster's workers and their --nthreads decide")
        return Dask(rest, folder, resources)
    if kind == "slurm" and rest:
        from .slurm import Slurm

        return Slurm(rest, folder, resources)
    if kind == "ray":
        from .ray import Ray

        return Ray(rest or None, resources)
    raise InputError(f"--on {on!r} names no engine; write {FORMS}.")


def jobs_of(text: str, on: str | None, resources: Resources) -> int | None:
    """Return how many runs at once ``local:N`` asks for."""
    if not text:
        return resources.jobs
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise InputError(f"--on {on!r}: {text!r} is no number of runs at once; write local:4.")
    if resources.jobs not in (None, int(text)):
        raise InputError(f"--on {on} and --jobs {resources.jobs} say different numbers; give one of them.")
    return int(text)


def refuse_jobs(resources: Resources, on: str | None, why: str) -> None:
    """Raise InputError for a number of runs at once that an engine has no say in."""
    if resources.jobs is not None:
        raise InputError(f"--jobs does not go with --on {on}: {why}.")
