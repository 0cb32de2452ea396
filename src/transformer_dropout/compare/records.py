"""Reads a comparison folder: which arms and seeds there are, and what every run recorded."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..errors import InputError, did_you_mean
from ..runs.training_config import REGULARIZERS
from ..schedules import schedule_from_data

FORMAT = 1

# Losses in nats per token compare only over the same tokens of the same vocabulary.
_SAME_DATA = ("train_sha256", "validation_sha256", "vocabulary_size")
_SAME_SETTINGS = ("model", "recipe", "training")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One arm trained with one seed: ``run.json`` as written, and one row of metrics per evaluation.

    Args:
        folder: the run folder.
        name: the arm's name.
        seed: the seed of initialisation, data order and masks.
        status: ``running``, ``finished``, ``failed``, ``interrupted`` or ``diverged``.
        record: the whole of ``run.json``.
        metrics: rows of ``metrics.jsonl``, in order of ``step``; losses in nats per token.
    """

    folder: Path
    name: str
    seed: int
    status: str
    record: Mapping[str, Any]
    metrics: list[dict[str, Any]]

    def section(self, name: str) -> Mapping[str, Any]:
        """Return one mapping of ``run.json`` (``data``, ``flops``, ``result`` ...), empty if missing."""
        return self.record.get(name) or {}

    @property
    def recipe(self) -> list[dict[str, Any]]:
        """The arm's rules, as written in its configuration."""
        return self.section("config").get("recipe") or []

    @property
    def training(self) -> Mapping[str, Any]:
        """The arm's training settings: steps, batch, learning rate, weight decay ..."""
        return self.section("config").get("training") or {}

    @property
    def weight_decay(self) -> float:
        """The arm's highest weight decay over the training, 0 if its configuration names none."""
        schedule = schedule_from_data(self.training.get("weight_decay") or 0.0, "training.weight_decay")
        return max(schedule(n / 20) for n in range(21))

    @property
    def penalised(self) -> bool:
        """Whether the arm has a regularizer of weights or targets besides its weight decay."""
        return any(self.training.get(name) for name in REGULARIZERS)

    @property
    def usable(self) -> bool:
        """Whether the run finished with a finite validation loss; only such runs enter statistics."""
        return self.status == "finished" and number(self.section("result"), "val_loss") is not None

    @property
    def val_loss(self) -> float:
        """Validation loss at the end of the run, in nats per token."""
        return float(self.section("result")["val_loss"])


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
        runs: every run of these arms and seeds that has a ``run.json``.
        item: what a loss is the mean over: a token, or the sentence of a classifier.
    """

    folder: Path
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    reference: str | None
    command: str
    created: str
    runs: tuple[Run, ...]
    item: str = "token"

    def of(self, arm: str) -> list[Run]:
        """Return the runs of one arm, in order of seed, whatever their status."""
        return [run for run in self.runs if run.name == arm]

    def usable(self, arm: str) -> list[Run]:
        """Return the runs of one arm that enter statistics."""
        return [run for run in self.of(arm) if run.usable]

    def losses(self, arm: str) -> dict[int, float]:
        """Return the final validation loss of each usable seed of one arm, in nats per item."""
        return {run.seed: run.val_loss for run in self.usable(arm)}


def number(row: Mapping[str, Any], key: str) -> float | None:
    """Return ``row[key]`` if it is a finite number, else None."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def load_comparison(folder: Path) -> Comparison:
    """Read a comparison folder; unfinished and failed runs are kept, but never enter statistics.

    Args:
        folder: a folder written by ``dropout compare``.

    Raises:
        InputError: the folder is none, is of a newer format, or its runs cannot be compared.
    """
    record = _read_json(folder / "comparison.json", hint="name the folder given to dropout compare --out")
    arms, seeds = tuple(record.get("arms") or ()), tuple(record.get("seeds") or ())
    if not arms:
        raise InputError(f"{folder / 'comparison.json'} names no arms: run dropout compare again.")
    reference = record.get("reference")
    if reference is not None and reference not in arms:
        raise InputError(f"The reference {reference!r} is none of the arms.{did_you_mean(reference, arms)}")
    mine = [run for run in load_runs(folder) if run.name in arms and run.seed in seeds]
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
        item=str(record.get("item") or "token"),
        runs=tuple(sorted(mine, key=lambda run: (arms.index(run.name), run.seed))),
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
    runs = [_load_run(path.parent) for path in sorted((folder / "runs").glob("*/seed-*/run.json"))]
    cells: dict[tuple[str, int], Run] = {}
    for run in runs:
        twin = cells.setdefault((run.name, run.seed), run)
        if twin is not run:
            raise InputError(
                f"{twin.folder} and {run.folder} are the same arm and seed: move one of them away."
            )
    return runs


def _load_run(folder: Path) -> Run:
    record = _read_json(folder / "run.json", hint="run the arm again")
    try:
        name, seed, status = str(record["name"]), int(record["seed"]), str(record["status"])
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{folder / 'run.json'} lacks a name, seed or status: delete {folder} and run the arm again."
        ) from None
    metrics = _read_metrics(folder / "metrics.jsonl")
    return Run(folder=folder, name=name, seed=seed, status=status, record=record, metrics=metrics)


def _read_json(path: Path, *, hint: str) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"{path} cannot be read: {hint}.") from None
    except ValueError:
        raise InputError(f"{path} is not valid JSON: {hint}.") from None
    if not isinstance(record, dict):
        raise InputError(f"{path} is not a JSON object: {hint}.")
    if record.get("format", FORMAT) > FORMAT:
        raise InputError(
            f"{path} has format {record['format']}, newer than {FORMAT}: pip install -U transformer-dropout."
        )
    return record


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows: dict[int, dict[str, Any]] = {}
    for at, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows[int(row["step"])] = (
                row  # a resumed run repeats the steps it lost: the later row is the true one
            )
        except (ValueError, KeyError, TypeError):
            if at == len(lines):  # the writer was killed in the middle of its last line
                break
            raise InputError(f"{path}:{at} is not a row of metrics: run the arm again.") from None
    return [rows[step] for step in sorted(rows)]


def _check_same_data(runs: list[Run]) -> None:
    for key in _SAME_DATA:
        known = [run for run in runs if run.section("data").get(key) is not None]
        for first, second in pairwise(known):
            if first.section("data")[key] != second.section("data")[key]:
                raise InputError(
                    f"{first.folder} and {second.folder} saw different data ({key}), so their losses do not "
                    "compare: run both again on one data set, or into two folders."
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
