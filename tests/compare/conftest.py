"""Comparison folders with known effects, written as the runner writes them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PLAIN = {"select": "mlp_output", "layer": "Dropout", "p": 0.1}
LEARNED = {"select": "mlp_output", "layer": "LearnedDropout", "heads": 4, "weight": 0.1}


def arm(effect: float, recipe: list[dict] | None = None, **settings: Any) -> dict[str, Any]:
    """Describe an arm: its true validation loss above 2.4 nats, its rules and other settings."""
    return {"effect": effect, "recipe": recipe or [], **settings}


FOUR_ARMS = {
    "none": arm(0.35),
    "dropout p=0.1": arm(0.0, [PLAIN]),
    "learned": arm(-0.06, [LEARNED], keep=0.62),
    "twin": arm(0.001, [{**PLAIN, "select": "attention_output"}, {**LEARNED, "weight": 0.0}], keep=0.93),
}


class Folder:
    """Writes run folders; losses are 2.4 + effect + the seed's own shift + a little noise."""

    def __init__(self, path: Path, noise: float = 0.01) -> None:
        self.path, self.noise = path, noise

    def write(
        self,
        arms: Mapping[str, Mapping[str, Any]] = FOUR_ARMS,
        seeds: tuple[int, ...] = (1, 2, 3, 4, 5),
        reference: str | None = None,
        task: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write ``comparison.json`` and one finished run per arm and seed.

        Args:
            task: the section ``task`` of the records, whose metrics are then measured; None for a loss alone,
                in records from before there was such a section.
        """
        record = {"format": 1, "arms": list(arms), "seeds": list(seeds), "reference": reference}
        record |= {"command": "dropout compare arms.yaml --out OUT", "created": "2025-01-02T03:04:05Z"}
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "comparison.json").write_text(json.dumps(record))
        (self.path / "runs").mkdir(exist_ok=True)
        for number, (name, settings) in enumerate(arms.items()):
            for seed in seeds:
                self.run(name, seed, number, settings, task)
        return self.path

    def cell(self, name: str, seed: int) -> Path:
        slug = "".join(c if c.isalnum() else "-" for c in name)
        return self.path / "runs" / slug / f"seed-{seed}"

    def run(
        self,
        name: str,
        seed: int,
        number: int,
        settings: Mapping[str, Any],
        task: Mapping[str, Any] | None,
    ) -> None:
        cell = self.cell(name, seed)
        cell.mkdir(parents=True)
        shift = np.random.default_rng(seed).normal(0, 0.05)
        noise = np.random.default_rng([seed, number]).normal(0, self.noise)
        rows = metric_rows(2.4 + settings["effect"] + shift + noise, settings)
        record = run_record(name, seed, settings, rows[-1])
        if task is not None:
            measure(task, rows, record)
        (cell / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (cell / "run.json").write_text(json.dumps(record))

    def change(self, name: str, seed: int, /, **changes: Any) -> None:
        """Overwrite top-level keys of one ``run.json``."""
        path = self.cell(name, seed) / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def metric_rows(final: float, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    keep, rows = settings.get("keep"), []
    overfit = max(0.0, settings["effect"])
    for step in range(0, 2001, 100):
        t = step / 2000
        val = final - overfit * (1 - t) + 3.0 * np.exp(-9 * t)
        kept = None if keep is None else keep + (1 - keep) * float(np.exp(-5 * t))
        rows.append(
            {
                "step": step,
                "tokens": step * 4096,
                "epochs": step * 4096 / 400_000,
                "train_loss": float(val - (0.2 + 1.5 * overfit) * t),
                "val_loss": float(val),
                "keep": kept,
                "keep_eval": None if kept is None else kept**2,
                "penalty": None if kept is None else 0.1 * kept,
                "lr": 1e-3 * (1 - t),
                "step_seconds": 0.05 if keep is None else 0.062,
                "peak_memory_bytes": 900_000_000,
            }
        )
    return rows


def run_record(name: str, seed: int, settings: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, Any]:
    learned = settings.get("keep") is not None
    training = {"steps": 2000, "batch": 16, "lr": 1e-3, "weight_decay": settings.get("weight_decay", 0.1)}
    training |= settings.get("training", {})
    result = {key: last[key] for key in ("step", "train_loss", "val_loss", "keep", "keep_eval")}
    sizes = {"tokens": 400_000, "bytes": 1_500_000, "documents": 812}
    return {
        "format": 1,
        "status": "finished",
        "name": name,
        "seed": seed,
        "config": {
            "name": name,
            "seed": seed,
            "model": {"width": 128, "heads": 4, "blocks": 4, "context": 256, "bias": False},
            "recipe": settings["recipe"],
            "data": {"source": "stdlib-docstrings"},
            "training": training,
        },
        "versions": {"python": "3.11.7", "torch": "2.13.0", "transformer_dropout": "0.1.0"},
        "machine": {"cpu": "EPYC", "device": "cpu", "threads": 1, "platform": "Linux"},
        "data": {
            "source": "stdlib-docstrings",
            "tokenizer": "bpe-4096",
            "vocabulary_size": 4096,
            "train": sizes,
            "validation": {"tokens": 40_000, "bytes": 150_000, "documents": 88},
            "train_sha256": "a" * 64,
            "validation_sha256": "b" * 64,
        },
        "parameters": {"total": 1_341_952 + 200_000 * learned, "regularizer": 200_000 * learned},
        "flops": {"training_per_token": 8.1e6 * (1.2 if learned else 1.0), "inference_per_token": 2.7e6},
        "alarms": [],
        "notes": [],
        "error": None,
        "result": result
        | {"wall_seconds": 131.0 + seed, "evaluation_bit_equal": True, "restored_step": None},
    }


def measure(task: Mapping[str, Any], rows: list[dict[str, Any]], record: dict[str, Any]) -> None:
    """Write every metric of a task: a loss as it is, anything else as 1 less a fifth of the loss."""
    for row in rows:
        losses = {use: row.pop(f"{use}_loss") for use in ("train", "val")}
        row[f"{task['item']}s"] = row.pop("tokens")
        for metric in task["metrics"]:
            for use, loss in losses.items():
                row[f"{use}_{metric['name']}"] = loss if metric["name"] == "loss" else 1 - loss / 5
    result, last = record["result"], rows[-1]
    for metric in task["metrics"]:
        name = metric["name"]
        result |= {f"{use}_{name}": last[f"{use}_{name}"] for use in ("train", "val")}
        result[f"test_{name}"] = last[f"val_{name}"]
    record["task"] = dict(task)
    record["flops"] = {f"training_per_{task['item']}": 1e6, f"inference_per_{task['item']}": 3e5}
    for split in ("train", "validation"):
        record["data"][split] = {f"{task['item']}s": 1000}
    record["data"]["test"] = {f"{task['item']}s": 1110, "sha256": "c" * 64}
    record["data"].pop("tokenizer"), record["data"].pop("vocabulary_size")


@pytest.fixture
def accuracy_task() -> dict[str, Any]:
    """A task on images that an accuracy decides and that has a loss beside."""
    accuracy = {"name": "accuracy", "unit": "share", "better": "higher"}
    loss = {"name": "loss", "unit": "nats", "better": "lower"}
    return {"name": "images", "item": "image", "metrics": [accuracy, loss]}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A comparison folder to write into."""
    return Folder(tmp_path / "out")


@pytest.fixture
def arm_of() -> Callable[..., dict[str, Any]]:
    """The function that describes an arm."""
    return arm
