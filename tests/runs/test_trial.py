"""What a training of the user's own is handed, and what becomes of what it tells."""

import json
import signal

import pytest
import torch

import transformer_dropout as td
from transformer_dropout.errors import InputError
from transformer_dropout.runs.listener import Listener
from transformer_dropout.runs.record import read_metrics, read_run
from transformer_dropout.runs.run import Interrupted
from transformer_dropout.runs.trial import direction
from transformer_dropout.runs.trial_config import TrialConfig

RULE = {"select": "mlp_output", "layer": "Dropout", "p": 0.1}


def rows(folder):
    return read_metrics(folder / "metrics.jsonl")


def test_a_trial_is_handed_what_its_arm_says(tmp_path):
    trial = td.Trial([RULE], seed=3, folder=tmp_path / "run", settings={"lr": 0.1}, steps=7)
    assert trial.recipe == td.Recipe.from_data([RULE])
    assert (trial.seed, trial.folder, trial.settings, trial.steps) == (3, tmp_path / "run", {"lr": 0.1}, 7)
    assert trial.folder.is_dir() and not trial.resumed
    assert td.Trial("lima", folder=tmp_path / "two").recipe == td.recipes.lima()


def test_rows_have_a_step_and_one_name_for_validation(tmp_path):
    told = []
    trial = td.Trial(folder=tmp_path, steps=20, listener=Listener(progress=told.append))
    trial.report(step=0, val_loss=2.0)
    trial.report(step=10, loss=torch.tensor(1.5, requires_grad=True))
    trial.report(step=10, eval_loss=1.25, lr=float("nan"))
    assert rows(tmp_path) == [
        {"step": 0, "val_loss": 2.0},
        {"step": 10, "loss": 1.5, "val_loss": 1.25, "lr": None},
    ]
    assert (told[-1].step, told[-1].steps, told[-1].loss, told[-1].val_loss) == (10, 20, 1.5, 1.25)


def test_the_record_is_that_of_every_run(tmp_path):
    trial = td.Trial(folder=tmp_path, name="mine", seed=4)
    assert read_run(tmp_path)["status"] == "running"
    trial.report(step=5, val_accuracy=0.5, val_loss=1.0)
    trial.finish(val_accuracy=0.75)
    record = read_run(tmp_path)
    assert (record["status"], record["name"], record["seed"]) == ("finished", "mine", 4)
    assert record["task"] == {
        "name": "trial",
        "item": "run",
        "metrics": [
            {"name": "accuracy", "unit": "", "better": "higher"},
            {"name": "loss", "unit": "", "better": "lower"},
        ],
    }
    assert record["result"]["val_accuracy"] == 0.75
    assert record["result"]["val_loss"] == 1.0
    assert record["result"]["step"] == 5
    assert record["checks"] == {"paired_start": None, "recipe_applied": None, "repeatable": None}


@pytest.mark.parametrize(("asked", "first"), [("val_loss", "loss"), ("loss", "loss"), ("eval_f1", "f1")])
def test_the_metric_that_is_asked_for_decides(tmp_path, asked, first):
    trial = td.Trial(folder=tmp_path, metric=asked)
    trial.report(step=1, val_accuracy=0.5, val_loss=1.0, val_f1=0.5)
    trial.finish()
    assert read_run(tmp_path)["task"]["metrics"][0]["name"] == first


def test_a_name_that_does_not_tell_which_way_is_better_must_be_told(tmp_path):
    with pytest.raises(InputError, match=r"Which way is val_score better\? Say --metric val_score:lower"):
        td.Trial(folder=tmp_path / "a").report(step=1, val_score=1)
    trial = td.Trial(folder=tmp_path / "b", metric="val_score:higher")
    trial.report(step=1, val_score=1)
    assert trial.metrics["score"].better == "higher"
    # Beside one that decides, it is recorded and not compared.
    trial = td.Trial(folder=tmp_path / "c")
    trial.report(step=1, val_loss=1, val_score=1)
    assert list(trial.metrics) == ["loss"]


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("loss", "lower"),
        ("my_loss", "lower"),
        ("macro_f1", "higher"),
        ("r2", "higher"),
        ("accuracy_top5", "higher"),
        ("perplexity", "lower"),
        ("lossless", None),
    ],
)
def test_names_that_tell_which_way_is_better(name, better):
    assert direction(name) == better


@pytest.mark.parametrize(
    ("step", "values", "words"),
    [
        (-1, {}, "whole numbers from 0 on"),
        (1.5, {}, "whole numbers from 0 on"),
        (True, {}, "whole numbers from 0 on"),
        (1, {"val_loss": "1.0"}, "a number is needed"),
        (1, {"val_loss": None}, "a number is needed"),
        (1, {"val_loss": torch.ones(2)}, "a number is needed"),
        (1, {"val_loss": float("nan")}, "val_loss was nan at step 1"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path, step, values, words):
    with pytest.raises(InputError, match=words):
        td.Trial(folder=tmp_path).report(step=step, **values)


def test_a_trial_that_reported_nothing_to_compare_does_not_finish(tmp_path):
    trial = td.Trial(folder=tmp_path)
    trial.report(step=1, loss=1.0)
    with pytest.raises(InputError, match=r"no metric that begins with val_; call trial\.report"):
        trial.finish()
    assert read_run(tmp_path)["status"] == "running"
    trial = td.Trial(folder=tmp_path, metric="f1")
    trial.report(step=1, val_loss=1.0)
    with pytest.raises(InputError, match="no val_f1"):
        trial.finish()


@pytest.mark.parametrize(("steps", "end"), [(7, 7), (None, 1)])
def test_the_end_does_not_take_the_place_of_what_was_measured_at_the_start(tmp_path, steps, end):
    trial = td.Trial(folder=tmp_path, steps=steps)
    trial.report(step=0, val_loss=2.0)
    trial.finish(evaluate=lambda: {"val_loss": 1.0})
    assert rows(tmp_path) == [{"step": 0, "val_loss": 2.0}, {"step": end, "val_loss": 1.0}]
    assert read_run(tmp_path)["result"]["step"] == end


def test_a_trial_that_begins_again_takes_the_place_of_the_steps_it_repeats(tmp_path):
    first = td.Trial(folder=tmp_path)
    for step in (10, 20, 30):
        first.report(step=step, val_loss=1 / step)
    again = td.Trial(folder=tmp_path)
    assert again.resumed
    again.report(step=20, val_loss=7.0)
    again.report(step=40, val_loss=3.0)
    assert [(row["step"], row["val_loss"]) for row in rows(tmp_path)] == [(10, 0.1), (20, 7.0), (40, 3.0)]


@pytest.mark.parametrize("sure", [True, False])
def test_a_repeated_evaluation_is_compared_to_the_last_bit(tmp_path, sure):
    losses = iter([1.0, 1.0 if sure else 1.0 + 2**-52])
    trial = td.Trial(folder=tmp_path)
    trial.report(step=3, val_loss=2.0)
    trial.finish(evaluate=lambda: {"eval_loss": next(losses)})
    record = read_run(tmp_path)
    assert record["checks"]["repeatable"] is sure
    assert record["result"]["val_loss"] == 1.0
    assert json.loads((tmp_path / "run.json").read_text()) == record


def test_what_is_not_said_of_a_trial(tmp_path):
    trial = td.Trial(folder=tmp_path)
    assert (trial.seed, trial.settings, trial.steps, trial.step) == (0, {}, None, 0)
    assert trial.recipe == td.Recipe()
    assert read_run(tmp_path)["name"] == "trial"


def test_a_trial_that_is_asked_to_end_says_at_which_step(tmp_path):
    trial = td.Trial(folder=tmp_path)
    trial.report(step=1, val_loss=1.0)
    (tmp_path / "stop").touch()
    with pytest.raises(Interrupted) as stopped:
        trial.report(step=2, val_loss=1.0)
    assert (stopped.value.step, stopped.value.signal) == (2, signal.SIGTERM)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


def test_how_fast_a_trainer_was_is_no_metric(tmp_path):
    trial = td.Trial(folder=tmp_path)
    trial.report(step=1, eval_runtime=3.0, eval_samples_per_second=2.0, val_loss=1.0)
    assert rows(tmp_path) == [{"step": 1, "val_loss": 1.0}]


def test_a_direction_that_is_said_counts_before_what_the_name_says(tmp_path):
    trial = td.Trial(folder=tmp_path / "a", metric="val_accuracy:lower")
    trial.report(step=1, val_accuracy=0.5, val_f1=0.5)
    assert {name: metric.better for name, metric in trial.metrics.items()} == {
        "accuracy": "lower",
        "f1": "higher",
    }
    for asked in ("val_loss:up", "loss:"):
        with pytest.raises(InputError, match="behind the colon stands lower or higher"):
            td.Trial(folder=tmp_path / "b", metric=asked)


def test_that_a_command_prints_its_rows_stays_known(tmp_path):
    trial = td.Trial(folder=tmp_path)
    trial.records.content["task"]["rows"] = "printed"
    trial.records.update()
    td.Trial(folder=tmp_path)
    task = {"name": "trial", "item": "run", "metrics": [], "rows": "printed"}
    assert read_run(tmp_path)["task"] == task


def test_a_step_that_comes_again_in_one_process_takes_the_place_of_what_followed_it(tmp_path):
    trial = td.Trial(folder=tmp_path)
    for step, loss in ((10, 1.0), (20, 2.0), (30, 3.0), (20, 4.0)):
        trial.report(step=step, val_loss=loss)
    assert [(row["step"], row["val_loss"]) for row in rows(tmp_path)] == [(10, 1.0), (20, 4.0)]


def test_the_end_knows_how_long_it_took_and_of_what_is_finite(tmp_path):
    trial = td.Trial(folder=tmp_path)
    trial.report(step=1, val_loss=1.0, gap=float("inf"))
    trial.finish()
    result = read_run(tmp_path)["result"]
    assert 0 < result.pop("wall_seconds") < 60
    assert result == {"step": 1, "val_loss": 1.0, "evaluation_bit_equal": None, "restored_step": None}


def test_a_config_makes_a_trial_in_its_folder(tmp_path):
    config = TrialConfig(name="a", seed=3, recipe=[RULE], settings={"x": 1}, steps=5, metric="val_f1")
    trial = td.Trial.of(config, tmp_path / "run", listener := Listener())
    assert trial.folder == tmp_path / "run" and trial.listener is listener
    assert (trial.seed, trial.settings, trial.steps) == (3, {"x": 1}, 5)
    record = read_run(tmp_path / "run")
    assert (record["config"], record["fingerprint"]) == (config.to_data(), config.fingerprint())
