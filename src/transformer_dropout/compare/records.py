"""Reads a comparison folder: which arms and seeds there are, and what every run recorded."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import InputError, did_you_mean
from ..runs.task import ACCURACY, LOSS, Metric
from ..runs.training_config import REGULARIZERS
from ..schedule_data import schedule_from_data
from .record_files import ComparisonFile, RunFile, read_file, read_rows
from .same_data import other_data

_SAME_SETTINGS = ("model", "recipe", "training", "settings")


@dataclass(frozen=True, kw_only=True)
class RecordedTask:
    """What runs trained, as their records say.

    Args:
        name: the task's name; ``trial`` where the training is the user's own.
        item: what a loss is the mean over, for sentences: token, byte, sentence; empty if unknown.
        counted: the name of the items in rows and in FLOPs, which calls bytes tokens.
        metrics: what an evaluation gives; the first decides. None yet where the user's own training has not
            reported any.
    """

    name: str
    item: str
    counted: str
    metrics: tuple[Metric, ...]

    @property
    def metric(self) -> Metric:
        """The metric that decides."""
        return self.metrics[0]

    @property
    def value(self) -> str:
        """The key of the number that decides, in rows and results."""
        return f"val_{self.metric.name}"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One arm trained with one seed: ``run.json`` as written, and one row of metrics per evaluation.

    Args:
        folder: the run folder.
        name: the arm's name.
        seed: the seed of initialisation, data order and masks.
        status: ``running``, ``finished``, ``failed``, ``interrupted`` or ``diverged``, or ``killed`` where
            the record says that it is running and no process holds its lock.
        task: what was trained.
        record: the whole of ``run.json``.
        metrics: rows of ``metrics.jsonl``, in order of ``step``.
    """

    folder: Path
    name: str
    seed: int
    status: str
    task: RecordedTask
    record: Mapping[str, Any]
    metrics: list[dict[str, Any]]

    def section(self, name: str) -> Mapping[str, Any]:
        """Return one mapping of ``run.json`` (``data``, ``flops``, ``result`` ...), empty if missing."""
        return self.record.get(name) or {}

    @property
    def recipe(self) -> list[dict[str, Any]]:
        """The arm's rules, as written in its configuration; none where they are written in another way."""
        recipe = self.section("config").get("recipe")
        return [rule for rule in recipe if isinstance(rule, dict)] if isinstance(recipe, list) else []

    @property
    def training(self) -> Mapping[str, Any]:
        """The arm's training settings: steps, batch, learning rate, weight decay ..."""
        return self.section("config").get("training") or {}

    @property
    def weight_decay(self) -> float:
        """The arm's highest weight decay over the training, 0 if its configuration names none."""
        schedule = schedule_from_data(self.training.get("weight_decay") or 0.0, "training.weight_decay")
        return schedule.bounds()[1]

    @property
    def penalised(self) -> bool:
        """Whether the arm has a regularizer of weights or targets besides its weight decay."""
        return any(self.training.get(name) for name in REGULARIZERS)

    @property
    def usable(self) -> bool:
        """Whether the run finished with a finite number that decides; only such runs enter statistics."""
        known = self.status == "finished" and bool(self.task.metrics)
        return known and number(self.section("result"), self.task.value) is not None

    @property
    def value(self) -> float:
        """The number that decides, on validation, at the end of the run."""
        return float(self.section("result")[self.task.value])

    @property
    def best(self) -> float:
        """The best of all its evaluations of the number that decides."""
        found = [number(row, self.task.value) for row in [*self.metrics, self.section("result")]]
        known = [value for value in found if value is not None]
        return min(known) if self.task.metric.better == "lower" else max(known)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Arms times seeds, with the runs there are; a cell may be missing, running or failed.

    Args:
        folder: the comparison folder.
        arms: the arms' names, in the order they were asked for.
        seeds: the seeds asked for.
        reference: the arm the others are compared with, or None to let the verdicts choose.
        command: the command line that made the folder.
        created: when, in ISO 8601.
        task: what all runs trained.
        runs: every run of these arms and seeds that has a ``run.json``.
        difference: the difference that the reader wants to be able to see, in the metric's unit as recorded;
            None for one that suits the reference's value.
        going_on: whether a process is working on it now.
    """

    folder: Path
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    reference: str | None
    command: str
    created: str
    task: RecordedTask
    runs: tuple[Run, ...]
    difference: float | None = None
    going_on: bool = False

    @property
    def metric(self) -> Metric:
        """The metric that decides."""
        return self.task.metric

    @property
    def cells(self) -> int:
        """How many runs were asked for."""
        return len(self.arms) * len(self.seeds)

    @property
    def finished(self) -> int:
        """How many runs finished."""
        return sum(run.status == "finished" for run in self.runs)

    def of(self, arm: str) -> list[Run]:
        """Return the runs of one arm, in order of seed, whatever their status."""
        return [run for run in self.runs if run.name == arm]

    def usable(self, arm: str) -> list[Run]:
        """Return the runs of one arm that enter statistics."""
        return [run for run in self.of(arm) if run.usable]

    def values(self, arm: str, key: str | None = None) -> dict[int, float]:
        """Return a number of the result of each usable seed of one arm.

        Args:
            arm: the arm's name.
            key: which number; None for the one that decides.
        """
        found = {run.seed: number(run.section("result"), key or self.task.value) for run in self.usable(arm)}
        return {seed: value for seed, value in found.items() if value is not None}

    def best_values(self, arm: str) -> dict[int, float]:
        """Return the best evaluation of each usable seed of one arm."""
        return {run.seed: run.best for run in self.usable(arm)}


def number(row: Mapping[str, Any], key: str) -> float | None:
    """Return ``row[key]`` if it is a finite number, else None."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer of more digits than any float
        return None


def load_comparison(folder: Path) -> Comparison:
    """Read a comparison folder; unfinished and failed runs are kept, but never enter statistics.

    Args:
        folder: a folder written by ``dropout compare``.

    Raises:
        InputError: the folder is none, is of a newer format, or its runs cannot be compared.
    """
    record = read_file(
        folder / "comparison.json", ComparisonFile, hint="name the folder given to dropout compare --out"
    )
    arms, seeds = tuple(map(one_line, record["arms"])), tuple(record["seeds"])
    reference = record.get("reference")
    reference = None if reference is None else one_line(reference)
    if reference is not None and reference not in arms:
        raise InputError(f"The reference {reference!r} is none of the arms.{did_you_mean(reference, arms)}")
    mine = [run for run in load_runs(folder) if run.name in arms and run.seed in seeds]
    _check_same_task(mine)
    _check_same_data(mine)
    for arm in arms:
        _check_same_settings([run for run in mine if run.name == arm])
    return Comparison(
        folder=folder,
        arms=arms,
        seeds=seeds,
        reference=reference,
        command=str(record.get("command") or ""),
        created=str(record.get("created") or ""),
        task=next((run.task for run in mine if run.task.metrics), _unsaid(record.get("item"))),
        runs=tuple(sorted(mine, key=lambda run: (arms.index(run.name), run.seed))),
        difference=record.get("difference"),
        going_on=_held(folder / ".comparison.lock") is True,
    )


def load_runs(folder: Path) -> list[Run]:
    """Read every run folder under ``folder/runs``; a folder without a ``run.json`` has not started.

    Args:
        folder: a folder written by ``dropout compare``.

    Raises:
        InputError: there is no ``runs`` folder, a record cannot be read, or two records claim one cell.
    """
    if not (folder / "runs").is_dir():
        raise InputError(f"{folder} has no runs: name the folder given to dropout compare --out.")
    runs = [load_run(path.parent) for path in sorted((folder / "runs").glob("*/seed-*/run.json"))]
    cells: dict[tuple[str, int], Run] = {}
    for run in runs:
        twin = cells.setdefault((run.name, run.seed), run)
        if twin is not run:
            raise InputError(
                f"{twin.folder} and {run.folder} are the same arm and seed: move one of them away."
            )
    return runs


def load_run(folder: Path) -> Run:
    """Read one run folder.

    Raises:
        InputError: when its record is damaged or of a newer format.
    """
    record = read_file(folder / "run.json", RunFile, hint=f"delete {folder} and run the arm again")
    status = record["status"]
    return Run(
        folder=folder,
        name=one_line(record["name"]),
        seed=record["seed"],
        status="killed" if status == "running" and _held(folder / ".run.lock") is False else status,
        task=_task(record),
        record=record,
        metrics=read_rows(folder / "metrics.jsonl"),
    )


def one_line(name: str) -> str:
    """Return a name without line breaks or runs of blanks."""
    return " ".join(name.split())


def _held(path: Path) -> bool | None:
    """Return whether a process holds a lock; None without one, as where it was copied from elsewhere."""
    if not path.exists():
        return None
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def _task(record: Mapping[str, Any]) -> RecordedTask:
    section, data = record.get("task"), (record.get("config") or {}).get("data") or {}
    if section is None:
        return _unsaid("sentence" if "classes" in data else None, (record.get("data") or {}).get("tokenizer"))
    metrics = tuple(
        Metric(name=each["name"], unit=each.get("unit", ""), better=each.get("better", "lower"))
        for each in section["metrics"]
    )
    item = section.get("item", "")
    bytes_of = item == "token" and (record.get("data") or {}).get("tokenizer") == "bytes"
    return RecordedTask(
        name=section["name"], item="byte" if bytes_of else item, counted=item, metrics=metrics
    )


def _unsaid(item: str | None, tokenizer: str | None = None) -> RecordedTask:
    """Return the task of a record from before records named it."""
    if item == "sentence":
        return RecordedTask(name="sentences", item=item, counted="token", metrics=(LOSS, ACCURACY))
    shown = "byte" if tokenizer == "bytes" else "token"
    return RecordedTask(name="language", item=shown, counted="token", metrics=(LOSS,))


def _check_same_task(runs: list[Run]) -> None:
    for first, second in pairwise(run for run in runs if run.task.metrics):
        if (first.task.name, first.task.item, first.task.metric) != (
            second.task.name,
            second.task.item,
            second.task.metric,
        ):
            raise InputError(
                f"{first.folder} and {second.folder} trained different tasks or are judged by different "
                "metrics, so they do not compare: run both again, or into two folders."
            )


def _check_same_data(runs: list[Run]) -> None:
    if other := other_data([(str(run.folder), run.section("data")) for run in runs]):
        first, second, key = other
        raise InputError(
            f"{first} and {second} saw different data ({key}), so their losses do not compare: run both "
            "again on one data set, or into two folders."
        )


def _check_same_settings(runs: list[Run]) -> None:
    """A mean over seeds must not mix settings, as after an edited configuration and a half-finished rerun."""
    for first, second in pairwise(runs):
        for key in _SAME_SETTINGS:
            if first.section("config").get(key) != second.section("config").get(key):
                raise InputError(
                    f"{first.folder} and {second.folder} are one arm with different settings ({key}): "
                    "delete the older folder and run the arm again."
                )
