"""The cheapest row of every record trains again, at a reduced size, and does what the record says."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from transformer_dropout.runs.record import read_metrics
from transformer_dropout.runs.run import run
from transformer_dropout.runs.run_config import load_run_config

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
FOLDERS = sorted(str(file.parent.relative_to(EXPERIMENTS)) for file in EXPERIMENTS.rglob("comparison.json"))
# They begin with a pre-trained encoder; tests/tasks/sentences/test_arms.py has a small one in its place.
OF_SENTENCES = ["fine_tuning/all", "fine_tuning/few", "sentences"]


def read_json(file):
    return json.loads(file.read_text(encoding="utf-8"))


def cheapest(name):
    """Return the folder of the run with the fewest operations; of several the one with the fewest rules."""

    def cost(folder):
        record = read_json(folder / "run.json")
        each = next(value for key, value in record["cost"].items() if key.startswith("training_flops_per"))
        return each * record["result"]["step"], len(record["config"]["recipe"]), folder.name

    return min((EXPERIMENTS / name / "runs").glob("*/seed-0"), key=cost)


def refuse_other_text(recorded, fresh):
    """Skip where the standard library, whose text it is, has another version."""
    if recorded.get("python") != fresh.get("python"):
        pytest.skip(f"The record is of Python {recorded['python']}, whose docstrings differ from these.")


def test_every_record_is_trained_again_by_a_test():
    assert set(FOLDERS) >= {*OF_SENTENCES, "causal_lm", "default"}
    told = (ROOT / "tests" / "tasks" / "sentences" / "test_arms.py").read_text(encoding="utf-8")
    assert all(f'"{name}"' in told for name in OF_SENTENCES)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FOLDERS if name not in [*OF_SENTENCES, "causal_lm"]])
def test_as_far_as_the_first_evaluation_it_trains_as_it_did(name, tmp_path):
    folder = cheapest(name)
    config, rows = load_run_config(folder / "config.yaml"), read_metrics(folder / "metrics.jsonl")
    source = str(config.data.source)
    if source.endswith(".txt") and not Path(source).is_file():
        pytest.skip(f"{source} is no part of the repository.")
    training = replace(config.training, steps=rows[1]["step"], decay_steps=config.training.steps)
    fresh = run(replace(config, training=training), tmp_path / "run")
    recorded = read_json(folder / "run.json")
    refuse_other_text(recorded["data"], fresh["data"])
    assert fresh["data"] == recorded["data"]
    found = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in found] == [row["step"] for row in rows[:2]]
    for row, wanted in zip(found, rows, strict=False):
        # Another processor rounds otherwise, and training carries that on.
        for loss in ("train_loss", "val_loss"):
            assert row[loss] == pytest.approx(wanted[loss], rel=0.02), (name, row["step"], loss)


@pytest.mark.slow
def test_a_model_pre_trained_for_three_steps_is_fine_tuned_on_the_windows_of_the_record(tmp_path, capsys):
    folder = cheapest("causal_lm")
    runpy.run_path(str(EXPERIMENTS / "causal_lm" / "pretrain.py"))["main"](tmp_path / "small_gpt2", 3)
    config, recorded = load_run_config(folder / "config.yaml"), read_json(folder / "run.json")
    model = replace(config.model, source=str(tmp_path / "small_gpt2"))
    training = replace(config.training, steps=2, eval_every=2, eval_windows=8, probe_windows=8)
    fresh = run(replace(config, model=model, training=training), tmp_path / "run")
    refuse_other_text(recorded["data"], fresh["data"])
    assert fresh["parameters"] == recorded["parameters"]
    assert fresh["data"]["train"] == recorded["data"]["train"]
    first, last = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert last["train_loss"] < first["train_loss"]


def test_the_power_of_moderated_tests_is_found_again_with_fewer_draws():
    simulate = runpy.run_path(str(EXPERIMENTS / "moderation" / "simulate.py"))
    table, rng = simulate["residuals"]()["layers"], np.random.default_rng(0)
    found = simulate["count"](table, "own", 6, 3, 200, rng)[:, 2]
    page = (EXPERIMENTS / "moderation" / "README.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith("| 6 | 3 | 0."))
    told = [float(cell.split()[0]) for cell in row.strip("|").split("|")[2:]]
    assert len(told) == len(found) == 4
    assert found == pytest.approx(told, abs=0.1)
