"""The cheapest row of every record trains again, at a reduced size, and does what the record says."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from transformer_dropout.runs.record import read_metrics
from transformer_dropout.runs.run import run
from transformer_dropout.runs.run_config import load_run_config

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
FOLDERS = sorted(str(file.parent.relative_to(EXPERIMENTS)) for file in EXPERIMENTS.rglob("comparison.json"))
# They begin with a pre-trained encoder; tests/tasks/sentences/test_arms.py has a small one in its place.
OF_SENTENCES = ["claims/bert_rates", "fine_tuning/all", "fine_tuning/few", "sentences", "tuned/sentences"]
# They begin with a pre-trained decoder, which a few steps stand for.
OF_WINDOWS = ["causal_lm", "tuned/causal_lm"]


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
    assert set(FOLDERS) >= {*OF_SENTENCES, *OF_WINDOWS, "default"}
    told = (ROOT / "tests" / "tasks" / "sentences" / "test_arms.py").read_text(encoding="utf-8")
    assert all(f'"{name}"' in told for name in OF_SENTENCES)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FOLDERS if name not in [*OF_SENTENCES, *OF_WINDOWS]])
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
@pytest.mark.parametrize("name", OF_WINDOWS)
def test_a_model_pre_trained_for_three_steps_is_fine_tuned_on_the_windows_of_the_record(
    name, tmp_path, capsys
):
    folder = cheapest(name)
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


def test_redundancy_is_measured_on_a_model_of_two_steps(tmp_path, tiny):
    measure = runpy.run_path(str(EXPERIMENTS / "redundancy" / "measure.py"))
    run(tiny(steps=2), tmp_path / "runs" / "tiny" / "seed-0")
    measure["main"](str(tmp_path), str(tmp_path))
    found = read_json(tmp_path / "measured.json")["tiny"]["0"]
    assert found.keys() == {"loss", *measure["MEASURES"]}
    recorded = read_json(tmp_path / "runs" / "tiny" / "seed-0" / "run.json")["result"]["val_loss"]
    assert found["loss"] == pytest.approx(recorded, abs=1e-5)
    assert 0 < found["correlation"] < 1
    assert all(abs(found[name]) > 1e-6 for name in measure["MEASURES"])


def test_units_that_are_copies_are_wholly_correlated_and_those_removed_are_the_same_each_time():
    measure = runpy.run_path(str(EXPERIMENTS / "redundancy" / "measure.py"))

    class Copies(nn.Module):
        def __init__(self):
            super().__init__()
            self.units = nn.Identity()

        def forward(self, x):
            return self.units(x)

    model, x = Copies(), torch.randn(5, 40, 1)
    texts = [(torch.cat([x, 2 * x, -x, torch.ones_like(x)], -1), None)]
    assert measure["correlation"](model, [model.units], texts) == pytest.approx(1)
    apart = [(torch.randn(50, 400, 3), None)]
    assert measure["correlation"](model, [model.units], apart) < 0.02
    with measure["changed"]([model.units], measure["without_units"](0, share=0.25)):
        first, second = model(apart[0][0].repeat(1, 1, 4)), model(torch.ones(2, 12))
    gone = (first == 0).all(dim=(0, 1))
    assert gone.sum() == 3 and torch.equal(second == 0, gone.expand(2, 12))
    with measure["changed"]([model.units], measure["with_noise"](0)):
        noise = model(apart[0][0]) - apart[0][0]
    assert noise.std().item() == pytest.approx(0.1, rel=0.05)
    assert torch.equal(model(x), x)
