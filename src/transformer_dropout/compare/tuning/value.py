"""The number that a search compares, from the records of its runs."""

from pathlib import Path
from typing import Any

from ...runs.record import read_metrics, read_run

LOSS = {"name": "loss", "better": "lower"}


def first_metric(folder: Path) -> dict[str, Any]:
    """Return the metric that decides, as a run's record says it."""
    return (((read_run(folder) or {}).get("task") or {}).get("metrics") or [LOSS])[0]


def deciding(folder: Path, values: dict[str, Any]) -> float | None:
    """Return the metric that decides, as a number of which less is better."""
    metric = first_metric(folder)
    value = values.get(f"val_{metric['name']}")
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if metric["better"] == "lower" else -float(value)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return the evaluations of a run so far."""
    path = folder / "metrics.jsonl"
    return read_metrics(path) if path.is_file() else []


def metric_name(out: Path) -> str:
    """Return the name of the metric that decided, from any run of the search."""
    for path in sorted((out / "trials").glob("*/*/fold-0/run.json")):
        metric = first_metric(path.parent)
        return f"val_{metric['name']}" + ("" if metric["better"] == "lower" else ", negated")
    return "val_loss"
