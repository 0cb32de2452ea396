"""Measure rows, each on its own, so that one that fails leaves the others."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal

import torch

from transformer_dropout.errors import InputError
from transformer_dropout.kernels._native import numba_installed, pure_pytorch

from .row import Budget, Measurement, Row

Status = Literal["met", "missed", "not measured", "failed"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of one row.

    Attributes:
        row: the row.
        status: "failed" when the sides did not agree before timing, or broke.
        measurement: None unless it was measured.
        reason: why it was not measured, or what failed.
        profile: where the time goes, of a row that misses its target or says what is in its way.
        seconds: wall-clock seconds that it took.
    """

    row: Row
    status: Status
    measurement: Measurement | None = None
    reason: str = ""
    profile: str = ""
    seconds: float = 0.0


def chosen_rows(rows: Iterable[Row], patterns: Iterable[str]) -> list[Row]:
    """Return the rows whose name, or ``name, path``, matches any of some Unix patterns; all without one.

    Raises:
        InputError: for a pattern that matches nothing; the message lists the rows.
    """
    known, wanted = list(rows), list(patterns)
    for pattern in wanted:
        if not any(matches(row, pattern) for row in known):
            names = "; ".join(dict.fromkeys(row.name for row in known))
            raise InputError(f"No row matches {pattern!r}; the rows are: {names}.")
    return [row for row in known if not wanted or any(matches(row, pattern) for pattern in wanted)]


def matches(row: Row, pattern: str) -> bool:
    """Return whether a row's name, with or without its path, fits a pattern."""
    return fnmatch(row.name, pattern) or fnmatch(f"{row.name}, {row.path}", pattern)


def run_rows(rows: Iterable[Row], budget: Budget, on_result: Callable[[Result], None]) -> list[Result]:
    """Measure rows one after another, telling of each.

    Args:
        rows: what to measure.
        budget: how much.
        on_result: called after each row.
    """
    results = []
    for row in rows:
        results.append(measure(row, budget))
        on_result(results[-1])
    return results


def measure(row: Row, budget: Budget) -> Result:
    """Measure one row, or say why it is not."""
    missing = what_is_missing(row)
    if missing:
        return Result(row=row, status="not measured", reason=missing)
    start = time.perf_counter()
    torch.manual_seed(0)
    try:
        with pure_pytorch() if row.path == "pure" else nullcontext():
            measurement = row.measure(budget)
            missed = not row.met(measurement.value)
            explained = missed or row.obstacle
            profile = profile_of(measurement.action) if explained and measurement.action else ""
    except Exception as error:
        # Whatever it was, the other rows are still worth measuring, and the command ends with an error.
        reason = f"{type(error).__name__}: {str(error).strip()}"
        return Result(row=row, status="failed", reason=reason, seconds=time.perf_counter() - start)
    return Result(
        row=row,
        status="missed" if missed else "met",
        measurement=measurement,
        profile=profile,
        seconds=time.perf_counter() - start,
    )


def profile_of(action: Callable[[], object], most: int = 5) -> str:
    """Return the operations that take most of one call, with their shares of the processor's time."""
    action()
    with silent_stderr(), torch.autograd.profiler.profile(use_kineto=False) as profiler:
        action()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)  # pyrefly: ignore
    total = sum(event.self_cpu_time_total for event in events) or 1
    return ", ".join(f"{event.key} {event.self_cpu_time_total / total:.0%}" for event in events[:most])


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Keep the lines that the profiler's C++ writes from the terminal."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def what_is_missing(row: Row) -> str:
    """Return what a row needs and this machine lacks, or nothing."""
    if row.path == "native" and not numba_installed():
        return "numba is not installed: pip install 'transformer-dropout[native]'"
    if row.path == "gpu" and not torch.cuda.is_available():
        return "there is no GPU here"
    return ""
