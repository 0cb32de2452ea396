"""A task in a file of the user's: the documented example runs by its path, arm by arm."""

import json
import shutil
from pathlib import Path

import pytest

import transformer_dropout as td
from transformer_dropout.runs.default_arms import default_arms
from transformer_dropout.runs.run import run
from transformer_dropout.runs.task import Task

ROOT = Path(__file__).parents[2]
SHORT = {"training.steps": "20", "training.eval_every": "10", "data.days": "120"}


@pytest.fixture
def file(tmp_path):
    """The example, where a user has it."""
    return shutil.copy(ROOT / "examples" / "my_task.py", tmp_path / "my_task.py")


def test_the_example_is_short_and_keeps_the_protocol(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) < 80
    assert all(isinstance(arm.find_task(), Task) for arm in default_arms(str(file), {}))


def test_its_arms_run_by_its_path_and_tell_its_own_metrics(file, tmp_path):
    arms = default_arms(str(file), SHORT)
    assert [arm.name for arm in arms] == ["none", "dropout", "L2"]
    records = [run(arm, tmp_path / arm.slug()) for arm in arms]
    for record in records:
        assert record["task"]["item"] == "day"
        assert record["result"]["evaluation_bit_equal"]
        assert {"val_loss", "val_gain", "test_loss", "test_gain"} <= record["result"].keys()
        assert record["data"] == records[0]["data"] and len(record["data"]["train"]["sha256"]) == 64
    assert len({record["result"]["train_loss"] for record in records}) == 3


def test_its_sections_are_set_and_checked_as_those_of_the_packages_tasks(file, tmp_path):
    (arm, *_) = default_arms(str(file), SHORT | {"model.history": "7", "data.noise": "0"})
    assert run(arm, tmp_path / "run")["config"]["model"]["history"] == 7
    with pytest.raises(td.InputError, match=r"unknown key 'model.histori'. Did you mean 'history'"):
        default_arms(str(file), {"model.histori": "7"})
    with pytest.raises(td.InputError, match=r"data\.days is 'many'"):
        default_arms(str(file), {"data.days": "many"})


def test_its_series_is_learned(file, tmp_path):
    (arm, *_) = default_arms(str(file), {"training.steps": "150", "data.noise": "0.1"})
    assert run(arm, tmp_path / "run")["result"]["val_gain"] > 0.5


@pytest.mark.slow
def test_the_documented_command_compares_its_arms(file, tmp_path, environment):
    import subprocess
    import sys

    command = ["compare", "--task", "my_task.py", "--seeds", "1", "--steps", "20", "--out", "out"]
    page = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    assert "dropout compare --task my_task.py" in page
    done = subprocess.run(
        [sys.executable, "-m", "transformer_dropout", *command, "--jobs", "1", "--set", "data.days=120"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((tmp_path / "out").glob("runs/*/seed-0/run.json"))) == 3
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["seeds"] == [0]
