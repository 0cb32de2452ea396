"""The record of a benchmark, as plain data, and the words for one row of it."""

import importlib.metadata
import re
from collections.abc import Iterable
from typing import Any

import torch

from transformer_dropout.runs.record import machine, versions

from .row import Budget
from .run import Result

FORMAT = 1


def new_record(results: Iterable[Result], budget: Budget, command: str) -> dict[str, Any]:
    """Return what a benchmark found, with all that decides its numbers.

    Args:
        results: of the rows.
        budget: how much was measured.
        command: what the user typed.
    """
    return {
        "format": FORMAT,
        "command": command,
        "rounds": budget.rounds,
        "quick": budget.quick,
        "machine": machine(),
        "products": products(),
        "versions": versions() | native_version(),
        "rows": [row_data(result) for result in results],
    }


def products() -> dict[str, str]:
    """Return which libraries multiply matrices here, and how exactly."""
    config = torch.__config__.show()
    found = {name: re.search(pattern, config) for name, pattern in LIBRARIES.items()}
    return {
        **{name: match[1] for name, match in found.items() if match},
        "capability": torch.backends.cpu.get_cpu_capability(),
        "float32_precision": torch.get_float32_matmul_precision(),
    }


LIBRARIES = {
    "MKL": r"Math Kernel Library Version (\S+)",
    "oneDNN": r"MKL-DNN v(\S+)",
    "BLAS": r"BLAS_INFO=(\w+)",
}


def native_version() -> dict[str, str]:
    """Return numba's version, where it is installed."""
    try:
        return {"numba": importlib.metadata.version("numba")}
    except importlib.metadata.PackageNotFoundError:
        return {}


def row_data(result: Result) -> dict[str, Any]:
    """Return one row as plain data."""
    row, found = result.row, result.measurement
    data: dict[str, Any] = {
        "name": row.name,
        "path": row.path,
        "target": row.target,
        "at_least": row.at_least,
        "unit": row.unit,
        "status": result.status,
        "wall_seconds": round(result.seconds, 1),
    }
    if result.reason:
        data["reason"] = result.reason
    if found is not None:
        data |= {
            "value": significant(found.value),
            "per_round": [significant(ratio) for ratio in found.per_round],
            "cpu_seconds": {name: significant(value) for name, value in found.seconds.items()},
            "gate": found.gate,
            "about": dict(found.about),
        }
    if result.status == "missed" or (result.status == "met" and row.obstacle):
        parts = (row.obstacle, result.profile and f"Of its time: {result.profile}.")
        told = " ".join(part for part in parts if part)
        data |= {"obstacle": told} if told else {}
    return data


def significant(value: float) -> float:
    """Return a number with four significant digits."""
    return float(f"{value:.4g}")


def target_text(row: dict[str, Any]) -> str:
    """Return ``≥ 1.7`` or ``≤ 0.13``."""
    return f"{'≥' if row['at_least'] else '≤'} {row['target']:g}"


def value_text(row: dict[str, Any]) -> str:
    """Return ``1.83 [1.79, 1.88]``, the value with the lowest and highest round, or a dash."""
    if "value" not in row:
        return "–"
    text, rounds = short(row["value"]), row["per_round"]
    return f"{text} [{short(min(rounds))}, {short(max(rounds))}]" if rounds else text


def short(value: float) -> str:
    """Return a number with three significant digits, without an exponent."""
    return f"{float(f'{value:.3g}'):.10g}"


def verdict_text(row: dict[str, Any]) -> str:
    """Return whether the target is met, by how much it is missed, or why nothing was measured."""
    if row["status"] == "missed":
        return f"misses by {abs(row['value'] - row['target']) / row['target']:.0%}"
    return f"{row['status']}: {row['reason']}" if row.get("reason") else row["status"]
