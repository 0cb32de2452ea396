"""Searches from end to end: the budget, a search that goes on, folds, and a training of the user's own."""

import json
import re
import socket

import pytest
import yaml

from transformer_dropout.compare.engines import Resources, choose_engine
from transformer_dropout.compare.tuning import study
from transformer_dropout.compare.tuning.results import found_by_all
from transformer_dropout.compare.tuning.space import Method, Range
from transformer_dropout.compare.tuning.study import Budget, MethodSearch, at_once, open_study, spread, tune
from transformer_dropout.errors import InputError
from transformer_dropout.runs.record import read_run
from transformer_dropout.runs.run import STOP_FILE
from transformer_dropout.runs.trial_config import TrialConfig

RULE = {"select": "attention_output", "layer": "Dropout", "p": 0.1}
FUNCTION = """
def train(trial):
    value = (trial.settings["x"] - 0.3) ** 2 + trial.recipe.rules[0].p(0.0)
    for step in range(3):
        trial.report(step=step, val_loss=value + 1.0 / (1 + step))
    trial.finish(val_loss=value)
"""

SLOW = """
import time

def train(trial):
    for step in range(30):
        trial.report(step=step, val_loss=float(trial.folder.parent.name == "0002"))
        time.sleep(0.1)
"""


def search(method, out, budget):
    return search_all([method], out, budget)


def search_all(methods, out, budget):
    ended = []
    tune(
        methods,
        out,
        choose_engine("local:1", out, Resources()),
        budget,
        on_event=lambda cell, event: None,
        on_trial=lambda method, trial: ended.append(trial),
    )
    return ended


def test_points_that_are_spread_are_the_same_at_every_call():
    assert spread(3, 4) == spread(3, 8)[:4]
    assert all(0 <= at <= 1 for point in spread(3, 8) for at in point)


@pytest.fixture
def own(tmp_path):
    """A method whose runs take a moment: a function of two numbers, in a file."""
    path = tmp_path / "mine.py"
    path.write_text(FUNCTION)
    arm = TrialConfig(name="mine", recipe=[RULE], function=f"{path}:train")
    return Method(arm=arm, settings={"x": Range(low=0.0, high=1.0), "recipe.*.p": Range(low=0.0, high=0.5)})


@pytest.mark.slow
def test_a_training_of_the_users_own_is_searched_and_the_search_goes_on(tmp_path, own):
    out = tmp_path / "out"
    first = search(own, out, Budget(trials=3, together=2, prune=False))
    assert [trial.number for trial in first] == [0, 1, 2]
    for trial in first:
        expected = (trial.params["x"] - 0.3) ** 2 + trial.params["recipe.*.p"]
        assert trial.value == pytest.approx(expected)
    # A trial that a killed process left behind is run again, and none that ended is.
    searched = open_study(out, "mine", Budget(trials=5))
    left = searched.ask()
    left.set_user_attr("process", {"host": socket.gethostname(), "pid": 2**22 - 1})
    again = search(own, out, Budget(trials=5, together=2, prune=False))
    assert [trial.number for trial in again] == [3, 4]
    assert {trial.state.name for trial in searched.get_trials()} == {"COMPLETE"}
    assert search(own, out, Budget(trials=5, prune=False)) == []


def test_a_trial_that_is_taken_up_again_tells_what_the_study_does_not_know_yet(tmp_path, own):
    left = open_study(tmp_path, "mine", Budget()).ask()
    left.set_user_attr("process", {"host": socket.gethostname(), "pid": 2**22 - 1})
    left.report(0.5, 0)
    left.report(0.4, 10)
    taken_up, fresh = MethodSearch(own, tmp_path, Budget(together=1)).next_trials()
    assert (taken_up.told, fresh.told) == (10, -1)
    (folder := taken_up.cells[0].folder).mkdir(parents=True)
    rows = [{"step": step, "val_loss": 0.5} for step in (0, 10, 20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # A step that is told twice is a warning of Optuna's, and so an error here.
    taken_up.look(taken_up.cells[0])
    assert taken_up.told == 20


@pytest.mark.slow
def test_a_run_below_the_median_ends_early(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "PRUNED_FROM", 2)
    path = tmp_path / "slow.py"
    path.write_text(SLOW)
    arm = TrialConfig(name="slow", recipe=[], function=f"{path}:train")
    method = Method(arm=arm, settings={"x": Range(low=0.0, high=1.0)})
    out = tmp_path / "out"
    ended = search(method, out, Budget(trials=4, together=1))
    # The third is worse than the two before it.
    assert [trial.state.name for trial in ended] == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"]
    pruned = read_run(out / "trials" / "slow" / "0002" / "fold-0")
    assert pruned["status"] == "interrupted"
    # What a process that died had already judged is not trained to its end by the next one.
    left = open_study(out, "slow", Budget(trials=5)).ask()
    left.set_user_attr("process", {"host": socket.gethostname(), "pid": 2**22 - 1})
    folder = out / "trials" / "slow" / "0004" / "fold-0"
    folder.mkdir(parents=True)
    (folder / STOP_FILE).touch()
    (again,) = search(method, out, Budget(trials=5, together=1))
    assert again.state.name == "PRUNED"


@pytest.mark.slow
def test_folds_are_runs_whose_mean_counts(tmp_path, tiny, monkeypatch):
    arm = tiny("a", recipe=[RULE], steps=4, eval_every=2)
    method = Method(arm=arm, settings={"recipe.0.p": Range(low=0.0, high=0.5)})
    out = tmp_path / "out"
    (trial,) = search(method, out, Budget(trials=1, folds=2, together=1))
    records = [read_run(out / "trials" / "a" / "0000" / f"fold-{fold}") for fold in range(2)]
    losses = [record["result"]["val_loss"] for record in records]
    assert trial.value == pytest.approx(sum(losses) / 2)
    assert losses[0] != losses[1]
    assert [record["config"]["training"].get("fold", 0) for record in records] == [0, 1]
    assert {record["config"]["recipe"][0]["p"] for record in records} == {trial.params["recipe.0.p"]}


@pytest.mark.slow
def test_the_command_ends_in_a_page_and_configs_that_compare_takes(tmp_path, tiny, monkeypatch, capsys):
    from transformer_dropout.cli.tune import tune as command

    config = tmp_path / "arm.yaml"
    config.write_text(tiny("arm", recipe=[RULE], steps=4, eval_every=2).to_yaml())
    space = tmp_path / "space.yaml"
    space.write_text("settings: {recipe.*.p: {low: 0.0, high: 0.5}}")
    monkeypatch.setenv("COLUMNS", "200")
    command([config], space=space, trials=3, jobs=1, out=tmp_path / "out", prune=False)
    printed = capsys.readouterr().out
    assert "Expected best" in (tmp_path / "out" / "tuning.md").read_text()
    assert "dropout compare" in printed and "--seeds 5" in printed
    content = json.loads((tmp_path / "out" / "tuning.json").read_text())
    trials = content["methods"][0]["trials"]
    best = min(trials, key=lambda trial: trial["value"])
    chosen = yaml.safe_load((tmp_path / "out" / "chosen" / "arm.yaml").read_text())
    assert chosen["recipe"][0]["p"] == best["settings"]["recipe.*.p"]
    assert "<svg" in (tmp_path / "out" / "tuning.html").read_text()


def test_methods_that_take_turns_keep_the_engine_busy_and_no_more(tmp_path):
    engine = choose_engine("local:8", tmp_path, Resources())
    assert [at_once(engine, methods, 1) for methods in (1, 3, 8, 20)] == [8, 3, 1, 1]
    assert at_once(engine, 1, folds=4) == 2 and at_once(choose_engine("local:1", tmp_path), 1, 1) == 1


@pytest.mark.slow
def test_of_a_trial_that_ended_the_record_stays_and_the_weights_go(tmp_path, tiny):
    method = Method(arm=tiny("a", recipe=[RULE], steps=4), settings={"recipe.0.p": Range(low=0.0, high=0.5)})
    out = tmp_path / "out"
    search(method, out, Budget(trials=1, together=1))
    kept = {path.name for path in (out / "trials" / "a" / "0000" / "fold-0").iterdir()}
    assert {"run.json", "metrics.jsonl", "config.yaml"} <= kept
    assert not {"checkpoints", "model"} & kept
    assert search(method, out, Budget(trials=1, together=1)) == []


@pytest.mark.slow
def test_a_method_without_a_value_does_not_hide_what_the_others_found(tmp_path, tiny, monkeypatch, capsys):
    from transformer_dropout.cli.tune import tune as command

    settings = {"training.lr": Range(low=1e-3, high=1e-2)}
    arms = [tiny("learns", steps=4), tiny("diverges", steps=4)]
    out, budget = tmp_path / "out", Budget(trials=2, together=1)
    beyond = {"training.lr": Range(low=1e30, high=1e31)}
    methods = [Method(arm=arm, settings=own) for arm, own in zip(arms, (settings, beyond), strict=True)]
    search_all(methods, out, budget)
    found, without = found_by_all(methods, lambda name: open_study(out, name, budget))
    assert [one.method.arm.name for one in found] == ["learns"] and found[0].best.value > 0
    assert len(without) == 1 and "No trial of 'diverges' ended with a value" in without[0]
    with pytest.raises(InputError, match=r"'diverges' ended with a value: .*not finite"):
        found_by_all(methods[1:], lambda name: open_study(out, name, budget))
    files, space = [], tmp_path / "space.yaml"
    for arm in arms:
        files.append(tmp_path / f"{arm.name}.yaml")
        files[-1].write_text(arm.to_yaml())
    space.write_text(
        "methods: {learns: {training.lr: {low: 0.001, high: 0.01}}, diverges: {training.lr: {low: 1.0e+30, "
        "high: 1.0e+31}}}"
    )
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        command(files, space=space, trials=2, jobs=1, out=tmp_path / "typed")
    printed = capsys.readouterr().out
    assert ended.value.code == 1 and "failed: No trial of 'diverges'" in printed
    assert "diverges, trial 2 of 2: The loss was not finite at step 2" in printed
    assert re.search(r"^learns, trial 2 of 2: \d\.\d{4}$", printed, flags=re.MULTILINE)
    assert "On fresh seeds" in printed and (tmp_path / "typed" / "tuning.html").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_is_asked_round_after_round(tmp_path, tiny, monkeypatch):
    distributed = pytest.importorskip("distributed")
    from transformer_dropout.compare.engines import dask

    method = Method(arm=tiny("a", steps=4), settings={"training.lr": Range(low=1e-3, high=1e-2)})
    out, ended = tmp_path / "out", []
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        engine = choose_engine(f"dask:{cluster.scheduler_address}", out)
        tune(
            [method],
            out,
            engine,
            Budget(trials=3, together=1),
            on_event=lambda cell, event: None,
            on_trial=lambda method, trial: ended.append(trial),
        )
        assert [trial.state.name for trial in ended] == ["COMPLETE"] * 3
        # Whether a worker sees the folder is told by the search's id.
        assert dask.folder_id(out) and not dask.folder_id(tmp_path)
