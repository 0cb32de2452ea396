"""Comparisons of trainings of the user's own: their arms, what they are handed, which starts were alike."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import transformer_dropout as td
from transformer_dropout.compare import trials
from transformer_dropout.compare.cells import Cell, Outcome
from transformer_dropout.compare.trials import (
    check_pairs,
    checked_reference,
    compare,
    first_evaluation,
    list_arms,
    trial_configs,
)
from transformer_dropout.errors import InputError
from transformer_dropout.runs.record import read_run
from transformer_dropout.runs.trial import Trial
from transformer_dropout.runs.trial_config import TrialArm, TrialConfig

RULE = {"select": "mlp_output", "layer": "Dropout", "p": 0.1}
RECIPE = td.Recipe.from_data([RULE])


def train(trial):
    """A training that is never called here."""


PLACE = f"{Path(__file__).resolve()}:train"


def test_arms_are_listed_in_one_form():
    arm = TrialArm(name="c", recipe="lima")
    assert list_arms({"a": [], "b": [RULE]}) == [TrialArm(name="a"), TrialArm(name="b", recipe=[RULE])]
    given = [{"name": "b", "recipe": RECIPE, "settings": {"lr": 1}}, arm]
    assert list_arms(given) == [TrialArm(name="b", recipe=RECIPE.to_data(), settings={"lr": 1}), arm]
    assert list_arms(iter([arm])) == [arm]
    for arms, words in [
        ({}, "There are no arms"),
        ([arm, 3], "^arm 2 is no mapping"),
        ([{}], "'name' is missing"),
    ]:
        with pytest.raises(InputError, match=words):
            list_arms(arms)


def test_every_arm_is_a_config_of_one_function():
    arms = [{"name": "a", "settings": {"lr": 2}}, {"name": "b", "recipe": "lima"}]
    first, second = trial_configs(
        arms, settings={"lr": 1, "width": 3}, steps=9, metric="val_f1", function=PLACE
    )
    assert first.settings == {"lr": 2, "width": 3} and second.settings == {"lr": 1, "width": 3}
    assert (first.recipe, second.recipe) == ([], td.recipes.lima().to_data())
    for config in (first, second):
        assert (config.steps, config.metric, config.function, config.command) == (9, "val_f1", PLACE, None)
        assert list(config.programs) == [str(Path(__file__).resolve())]


def test_a_function_is_found_from_any_folder(monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    (config,) = trial_configs({"a": []}, function=f"{Path(__file__).name}:train")
    assert config.function == PLACE
    with pytest.raises(InputError, match="has no function 'trian'"):
        trial_configs({"a": []}, function=f"{Path(__file__).name}:trian")


def test_every_arm_is_a_config_of_one_command(tmp_path):
    program = tmp_path / "train.py"
    program.write_text("")
    command = f"python {program} {{seed}} {{lr}} {{own}} {{recipe}}"
    arms = [{"name": "a", "settings": {"own": 2}}, {"name": "b", "recipe": [RULE]}]
    configs = trial_configs(arms, settings={"lr": 1}, command=command)
    assert [config.command for config in configs] == [command] * 2
    assert all(list(config.programs) == [str(program)] for config in configs)
    with pytest.raises(InputError, match=r"takes no \{recipe\}"):
        trial_configs(arms, settings={"lr": 1}, command="python {seed} {lr} {own}")
    with pytest.raises(InputError, match=r"nobody fills \{lr\}"):
        trial_configs(arms, command=command)


def test_a_reference_is_one_of_the_arms():
    configs = [TrialConfig(name="a"), TrialConfig(name="b")]
    assert (checked_reference(None, configs), checked_reference("b", configs)) == (None, "b")
    with pytest.raises(InputError, match="'c' is no arm; the arms are: a, b"):
        checked_reference("c", configs)


def cell(folder, name, seed, *rows, finished=True):
    made = Cell(config=TrialConfig(name=name, seed=seed), folder=folder / name / str(seed))
    trial = Trial(name=name, seed=seed, folder=made.folder)
    for row in rows:
        trial.report(**row)
    if finished:
        trial.finish(val_loss=1.0)
    return made


def paired(*cells):
    check_pairs(cells)
    return [read_run(each.folder)["checks"]["paired_start"] for each in cells]


def start(measured, step=0, **more):
    return {"step": step, "val_loss": measured, **more}


@pytest.mark.parametrize(
    ("first", "second", "known"),
    [
        (start(2.0), start(2.0), True),
        (start(2.0, loss=1), start(2.0, loss=3), True),
        (start(2.0), start(2.5), False),
        (start(2.0), start(2.0, val_f1=0.5), False),
        (start(2.0), start(2.0, step=1), None),
        (start(2.0, step=1), start(2.0, step=1), None),
        (start(2.0), {"step": 0, "loss": 2.0}, None),
    ],
)
def test_arms_of_a_seed_began_alike_or_not_or_nobody_knows(tmp_path, first, second, known):
    cells = [cell(tmp_path, "a", 1, first), cell(tmp_path, "b", 1, second)]
    assert paired(*cells) == [known] * 2
    assert paired(*cells) == [known] * 2


def test_only_finished_arms_of_the_same_seed_are_compared(tmp_path):
    one = cell(tmp_path, "a", 1, start(2.0))
    other = cell(tmp_path, "b", 2, start(3.0))
    unfinished = cell(tmp_path, "c", 1, start(3.0), finished=False)
    assert paired(one, other, unfinished) == [None] * 3
    assert paired(one, cell(tmp_path, "d", 1, start(2.0)), other) == [True, True, None]


def test_what_was_not_measured_is_not_known(tmp_path):
    folder = tmp_path / "a"
    assert first_evaluation(SimpleNamespace(folder=folder)) is None
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("")
    assert first_evaluation(SimpleNamespace(folder=folder)) is None
    (folder / "metrics.jsonl").write_text(
        '{"step": 0, "loss": 1, "val_loss": 2}\n{"step": 1, "val_loss": 1}\n'
    )
    assert first_evaluation(SimpleNamespace(folder=folder)) == {"val_loss": 2}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Compare without training; return what was called with what."""
    seen = {}

    def choose(on, folder, resources):
        seen.update(on=on, resources=resources)
        return "engine"

    def run_cells(cells, engine, on_event, on_outcome):
        on_event(cells[0], {}), on_outcome(None)
        seen.update(cells=cells, engine=engine)
        ends = seen["ends"] + ["finished"] * len(cells)
        return [
            Outcome(cell=each, status=end, reason=seen["why"]) for each, end in zip(cells, ends, strict=False)
        ]

    monkeypatch.setattr(trials, "choose_engine", choose)
    monkeypatch.setattr(trials, "run_cells", run_cells)
    monkeypatch.setattr(trials, "check_pairs", lambda cells: seen.update(checked=cells))
    monkeypatch.setattr(trials, "write_report", lambda folder: seen.update(report=folder))
    monkeypatch.setattr(trials, "load_comparison", lambda folder: ("comparison", folder))

    def run(ends=(), why="", **words):
        seen.clear()
        seen.update(ends=list(ends), why=why)
        return compare(
            **{"train": PLACE, "arms": {"a": [], "b": "lima"}, "out": tmp_path / "out"} | words
        ), seen

    run.seen = seen
    return run


def test_every_arm_is_trained_with_every_seed_and_reported(run, tmp_path):
    found, seen = run(
        seeds=2, on="local:2", gpus=1, reference="b", settings={"lr": 1}, steps=3, metric="val_f1"
    )
    assert found == ("comparison", tmp_path / "out") and seen["report"] == tmp_path / "out"
    assert [each.name for each in seen["cells"]] == ["a, seed 0", "b, seed 0", "a, seed 1", "b, seed 1"]
    assert seen["checked"] is seen["cells"] and seen["engine"] == "engine"
    assert (seen["on"], seen["resources"].gpus) == ("local:2", 1)
    config = seen["cells"][1].config
    assert (config.settings, config.steps, config.metric, config.function) == ({"lr": 1}, 3, "val_f1", PLACE)
    assert {each.module for each in seen["cells"]} == {"transformer_dropout.runs.trials"}
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert (record["reference"], record["seeds"]) == ("b", [0, 1])
    assert record["command"] == f"td.compare({PLACE!r})"


def test_seeds_may_be_named_and_a_function_be_given(run, monkeypatch):
    monkeypatch.setattr(trials, "place_of", lambda function: PLACE)
    _, seen = run(train=train, seeds=[5, 3])
    assert [each.config.seed for each in seen["cells"]] == [5, 5, 3, 3]
    _, seen = run(out=seen["cells"][0].folder.parents[3] / "other")
    assert [each.config.seed for each in seen["cells"]] == [0, 0, 1, 1, 2, 2]
    assert seen["resources"].gpus is None and seen["on"] is None


@pytest.mark.parametrize(
    ("ends", "why", "sentence", "reported"),
    [
        (
            ["failed"],
            "no memory",
            r"^1 of 2 runs did not finish; the first, a, seed 0: no memory\. The",
            True,
        ),
        (
            ["finished", "stopped"],
            "",
            r"^1 of 2 runs did not finish; the first, b, seed 0: stopped\. The",
            True,
        ),
        (["failed", "failed"], "x", "^2 of 2 runs did not finish", False),
    ],
)
def test_runs_that_failed_are_told_of_beside_the_report_of_the_others(run, ends, why, sentence, reported):
    with pytest.raises(InputError, match=sentence):
        run(ends, why, seeds=1)
    assert ("report" in run.seen) is reported


def test_without_a_folder_it_is_one_of_the_runs_here(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run.seen.update(ends=[], why="")
    assert compare(PLACE, arms={"a": []}) == ("comparison", Path("runs/compare"))
    assert (tmp_path / "runs" / "compare" / "comparison.json").exists()
