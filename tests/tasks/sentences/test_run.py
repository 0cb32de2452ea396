"""Runs: every arm trains and records; the arms of a seed share what they must."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from transformer_dropout.errors import InputError
from transformer_dropout.runs.record import read_metrics, read_run
from transformer_dropout.tasks.sentences.config import load_config
from transformer_dropout.tasks.sentences.loop import FineTuning, learning_rate
from transformer_dropout.tasks.sentences.run import checked_splits, run

ARMS = ["none", "bert", "adaptive", "layerwise", "learned", "rdrop", "l2sp"]


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_trains_and_records(tmp_path, configs, arm):
    config, told = configs[arm], []
    record = run(config, tmp_path / "run")
    assert record == read_run(tmp_path / "run")
    assert (record["status"], record["name"], record["seed"]) == ("finished", arm, 0)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [(row["step"], row["epochs"]) for row in rows] == [(3, 1.0), (6, 2.0)]
    result = record["result"]
    assert result["evaluation_bit_equal"] is True
    assert result["val_loss"] == rows[-1]["val_loss"]
    for name in ("train_loss", "val_loss", "test_loss"):
        assert 0 < result[name] < 2
    for name in ("train_accuracy", "val_accuracy", "test_accuracy"):
        assert 0 <= result[name] <= 1
    assert all(math.isfinite(row["penalty"]) and row["step_seconds"] > 0 for row in rows)
    assert (rows[-1]["penalty"] > 0) == (arm in ("learned", "l2sp"))
    assert (result["keep"] is not None) == (arm == "learned")
    assert record["data"]["train"]["documents"] == 24
    assert record["flops"]["training_per_token"] > 2 * record["flops"]["inference_per_token"] > 0
    assert not told


def test_arms_of_a_seed_share_weights_and_order_and_seeds_do_not(configs):
    splits = checked_splits(configs["none"])
    runs = [FineTuning(configs[arm], splits) for arm in ARMS]
    other = FineTuning(replace(configs["none"], seed=1), splits)
    first = dict(runs[0].model.named_parameters())
    for one in runs[1:]:
        assert one.indices(4) == runs[0].indices(4)
        own = dict(one.model.named_parameters())
        assert all(torch.equal(own[name], value) for name, value in first.items())
    assert other.indices(4) != runs[0].indices(4)
    assert not torch.equal(other.model.classifier.weight, first["classifier.weight"])


def test_the_same_config_gives_the_same_run(tmp_path, configs):
    losses = []
    for name in ("one", "two"):
        torch.manual_seed(len(losses))
        run(configs["learned"], tmp_path / name)
        rows = read_metrics(tmp_path / name / "metrics.jsonl")
        losses.append([(row["train_loss"], row["val_loss"], row["keep"]) for row in rows])
    assert losses[0] == losses[1]


def test_training_lowers_the_loss(tmp_path, changed):
    run(changed("none", steps=60, lr=1e-2), tmp_path / "run")
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] / 2


def test_the_learning_rate_rises_then_falls_to_nearly_zero(changed):
    config = changed(steps=100, lr=1.0, warmup=0.06).training
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert rates[6] == 1.0
    assert rates[-1] == pytest.approx(1 / 94)
    assert learning_rate(0, changed(steps=2, lr=1.0).training) == 1.0


def test_a_finished_run_is_not_touched_and_an_unfinished_one_starts_over(tmp_path, configs):
    config, folder = configs["none"], tmp_path / "run"
    record = run(config, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert run(config, folder) == record
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    (folder / "run.json").write_text(json.dumps(record | {"status": "running"}))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4')
    assert run(config, folder)["result"]["val_loss"] == record["result"]["val_loss"]
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == [3, 6]
    with pytest.raises(InputError, match="holds another run"):
        run(replace(config, seed=1), folder)


def test_a_config_survives_its_file_and_knows_nothing_of_places(tmp_path, configs):
    config = configs["learned"]
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(path) == config
    assert str(tmp_path.parent) not in json.dumps(config.to_data())
    moved = replace(config, data=replace(config.data, files={n: f"x/{n}" for n in config.data.files}))
    assert moved.fingerprint() == config.fingerprint()
    path.write_text(config.to_yaml().replace("warmup", "warmpu"), encoding="utf-8")
    with pytest.raises(InputError, match="Did you mean 'warmup'"):
        load_config(path)


def test_other_sentences_and_other_weights_are_refused(tmp_path, configs):
    config = configs["none"]
    other = replace(config, data=replace(config.data, train_sentences=20))
    with pytest.raises(InputError, match="files of sentences are not those"):
        run(other, tmp_path / "run")
    other = replace(config, model=replace(config.model, sha256="0"))
    with pytest.raises(InputError, match="are not those that the run config names"):
        run(other, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_ends_the_run_with_a_sentence(tmp_path, changed):
    with pytest.raises(InputError, match="not finite at step"):
        run(changed(lr=1e30, clip=1e30), tmp_path / "run")
    assert read_run(tmp_path / "run")["status"] == "diverged"


@pytest.mark.slow
def test_a_folder_is_trained_by_a_process_of_its_own(tmp_path, configs):
    (tmp_path / "config.yaml").write_text(configs["none"].to_yaml(), encoding="utf-8")
    command = [sys.executable, "-m", "transformer_dropout.tasks.sentences", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout.splitlines()[-1])["step"] == 6
    assert read_run(tmp_path)["status"] == "finished"
    (tmp_path / "config.yaml").write_text("name: x\n", encoding="utf-8")
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is missing" in done.stderr
