"""The records of a run: ``run.json`` and ``metrics.jsonl``."""

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import transformer_dropout

from .cost import Cost
from .files import write_atomically, write_json
from .run_config import RunConfig

FORMAT = 1


def machine() -> dict[str, Any]:
    """Describe where the run computes."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "platform": platform.platform(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
    }


def versions() -> dict[str, str]:
    """Return the versions that decide the arithmetic."""
    return {
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "transformer_dropout": transformer_dropout.__version__,
    }


def computed_by(config: RunConfig) -> dict[str, Any]:
    """Return what decides the last digits of a run: processor, threads, libraries, native loops or not."""
    import numpy as np

    return {
        "processor": machine()["cpu"],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": machine()["device"],
        "float32_linears": float32_linears(config),
        "native": native_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "transformer_dropout": transformer_dropout.__version__,
    }


def native_version() -> str | None:
    """Return the version of numba, whose machine code computes masks and attention; None without it."""
    try:
        return importlib.metadata.version("numba")
    except importlib.metadata.PackageNotFoundError:
        return None


def float32_linears(config: RunConfig) -> str:
    """Return which library computes a run's linear layers in float32."""
    eager_on_a_processor = not (config.training.compile or torch.cuda.is_available())
    return "oneDNN" if eager_on_a_processor and torch.backends.mkldnn.is_available() else "PyTorch"


def new_record(config: RunConfig, manifest: Mapping[str, Any], cost: Cost) -> dict[str, Any]:
    """Return the content of ``run.json`` at the start of a run."""
    task = config.find_task()
    return {
        "format": FORMAT,
        "status": "running",
        "name": config.name,
        "seed": config.seed,
        "fingerprint": config.fingerprint(),
        "task": {
            "name": config.task,
            "item": task.item,
            "metrics": [asdict(metric) for metric in task.metrics],
        },
        "config": config.to_data(),
        "versions": versions(),
        "machine": machine(),
        "computed_by": computed_by(config),
        "data": data_section(manifest),
        "parameters": {
            "total": cost.parameters,
            "without_positional": cost.without_positional,
            "regularizer": cost.regularizer,
            "frozen": cost.frozen,
            "trained": cost.trained,
        },
        "flops": {
            f"training_per_{task.item}": cost.training_flops_per_item,
            f"inference_per_{task.item}": cost.inference_flops_per_item,
            "gate_share": cost.gate_share,
        },
        "cost": asdict(cost),
        "alarms": [],
        "notes": notes_on(cost) + ([manifest["note"]] if "note" in manifest else []),
        "error": None,
        "result": None,
    }


def notes_on(cost: Cost) -> list[str]:
    """Return what a reader of the record should know."""
    if not cost.frozen:
        return []
    return [
        f"{cost.frozen:,} parameters never receive a gradient: the masks' input is detached from the "
        "shared attention that makes it, as published."
    ]


def data_section(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a data manifest with the digests of its splits one level up, where readers look first."""
    splits = {name: manifest[name] for name in ("train", "validation", "test") if name in manifest}
    return dict(manifest) | {f"{name}_sha256": split["sha256"] for name, split in splits.items()}


class Records:
    """The two record files of a run folder; only the first of several processes writes.

    Args:
        folder: the run folder.
        writes: whether this process writes.
    """

    def __init__(self, folder: Path, writes: bool) -> None:
        self.folder, self.writes = folder, writes
        self.content: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []

    def update(self, **changes: Any) -> None:
        """Change keys of ``run.json``."""
        self.content.update(changes)
        if self.writes:
            write_json(self.folder / "run.json", self.content)

    def append(self, metrics: dict[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``."""
        self.rows.append(metrics)
        if self.writes:
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")
                file.flush()
                # A checkpoint that outlives a power cut must not lack the rows before it.
                os.fsync(file.fileno())

    def begin_with(self, rows: list[dict[str, Any]]) -> None:
        """Make ``metrics.jsonl`` hold these lines and no others, whatever a kill or a fault left of it."""
        self.rows = list(rows)
        path = self.folder / "metrics.jsonl"
        if self.writes and (rows or path.exists()):
            write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a ``metrics.jsonl`` that are whole; a kill may have cut the last one short."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    return [row for line in lines if line.endswith("\n") and (row := whole_row(line)) is not None]


def whole_row(line: str) -> dict[str, Any] | None:
    """Return one row of metrics, or None where the line is damaged."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def read_run(folder: Path) -> dict[str, Any] | None:
    """Return the content of a folder's ``run.json``; None when there is none or it is unreadable."""
    try:
        content = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
