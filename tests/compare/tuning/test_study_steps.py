"""The steps of a search, each without training: what is asked for, when a run is ended, how a trial ended."""

import json
import os
import socket
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest

from transformer_dropout.compare.cells import TRAINING, Cell, Outcome
from transformer_dropout.compare.trials import TRIALS
from transformer_dropout.compare.tuning import study
from transformer_dropout.compare.tuning.space import Choice, Method, Range
from transformer_dropout.compare.tuning.study import (
    Budget,
    MethodSearch,
    Running,
    alive,
    give_id,
    in_fold,
    open_study,
    suggest_value,
    tune,
)
from transformer_dropout.errors import InputError
from transformer_dropout.runs.trial import Trial
from transformer_dropout.runs.trial_config import TrialConfig

RULE = {"select": "attention_output", "layer": "Dropout", "p": 0.1}
ARM = TrialConfig(name="My arm", recipe=[RULE], function="mine.py:train", settings={"kept": 1})
METHOD = Method(arm=ARM, settings={"x": Range(low=0.0, high=1.0), "recipe.0.p": Range(low=0.0, high=0.5)})


class Asked(SimpleNamespace):
    """Optuna's trial and study, which note what they are told."""

    def suggest_float(self, *given, **words):
        return ("float", given, words)

    def suggest_int(self, *given, **words):
        return ("int", given, words)

    def suggest_categorical(self, *given):
        return ("choice", given)

    def report(self, value, step):
        self.told.append((step, value))

    def should_prune(self):
        return self.below

    def set_user_attr(self, key, value):
        self.told.append((key, value))

    def tell(self, trial, value=None, *, state=None):
        self.told.append((value, None if state is None else state.name))
        return "frozen"


def test_a_share_of_the_trials_is_spread_evenly():
    assert [Budget(trials=n).quasi_random for n in (1, 2, 6, 40)] == [1, 1, 3, 16]


def test_a_setting_is_suggested_by_its_kind():
    trial = Asked()
    assert suggest_value(trial, "a", Range(low=0.5, high=2.0, log=True)) == (
        "float",
        ("a", 0.5, 2.0),
        {"log": True},
    )
    assert suggest_value(trial, "b", Range(low=1, high=8, whole=True)) == ("int", ("b", 1, 8), {"log": False})
    assert suggest_value(trial, "c", Choice(values=("x", 2))) == ("choice", ("c", ["x", 2]))


def running(tmp_path, *, below=False, folds=1, **facts):
    cells = [Cell(config=ARM, folder=tmp_path / f"fold-{fold}") for fold in range(folds)]
    for cell in cells:
        cell.folder.mkdir(exist_ok=True)
    asked = Asked(told=[], below=below)
    return Running(study=asked, trial=asked, method=METHOD, cells=cells, **{"prune": True} | facts)


def rows(cell, *losses):
    text = "".join(json.dumps({"step": step, "val_loss": loss}) + "\n" for step, loss in enumerate(losses))
    (cell.folder / "metrics.jsonl").write_text(text)


def test_new_evaluations_are_told_once(tmp_path):
    trial = running(tmp_path)
    cell = trial.cells[0]
    trial.look(cell)
    rows(cell, 3.0, None, 2.0)
    trial.look(cell)
    rows(cell, 3.0, None, 2.0, 1.5)
    trial.look(cell)
    assert trial.trial.told == [(0, 3.0), (2, 2.0), (3, 1.5)]
    assert not trial.pruned and not (cell.folder / "stop").exists()


def test_a_run_below_the_median_is_asked_to_end_once_it_has_trained(tmp_path):
    trial = running(tmp_path, below=True, folds=2)
    first, second = trial.cells
    rows(first, 3.0)
    trial.look(first)
    assert not trial.pruned
    rows(first, 3.0, 2.0)
    trial.look(second)
    assert not trial.pruned
    trial.look(first)
    assert trial.pruned is True
    assert all((cell.folder / "stop").exists() for cell in trial.cells)
    rows(first, 3.0, 2.0, 1.0)
    trial.look(first)
    assert trial.trial.told == [(0, 3.0), (1, 2.0)]


@pytest.mark.parametrize("facts", [{"prune": False}, {"pruned": True}])
def test_nobody_looks_where_nothing_is_ended(tmp_path, facts):
    trial = running(tmp_path, below=True, **facts)
    rows(trial.cells[0], 3.0, 2.0)
    trial.look(trial.cells[0])
    assert trial.trial.told == [] and not (trial.cells[0].folder / "stop").exists()


def finished(cell, loss):
    trial = Trial(folder=cell.folder)
    trial.report(step=1, val_loss=loss)
    trial.finish()
    return Outcome(cell=cell, status="finished")


def failed(cell, reason=""):
    return Outcome(cell=cell, status="failed", reason=reason)


def test_the_mean_of_the_folds_is_told(tmp_path):
    trial = running(tmp_path, folds=2, pruned=True)
    first, second = trial.cells
    assert trial.end([finished(first, 3.0), finished(second, 2.0)]) == "frozen"
    assert trial.study.told == [(2.5, None)]


@pytest.mark.parametrize(
    ("pruned", "reason", "told"),
    [
        (True, "no memory", [(None, "PRUNED")]),
        (False, "no memory", [("reason", "no memory"), (None, "FAIL")]),
        (False, "", [("reason", "no value"), (None, "FAIL")]),
    ],
)
def test_a_trial_of_which_a_fold_is_missing_has_no_value(tmp_path, pruned, reason, told):
    trial = running(tmp_path, folds=2, pruned=pruned)
    first, second = trial.cells
    assert trial.end([finished(first, 3.0), failed(second, reason)]) == "frozen"
    assert trial.study.told == told


def test_weights_of_a_trial_go_and_those_of_the_users_own_stay(tmp_path):
    for module, left in ((TRAINING, {"run.json"}), (TRIALS, {"run.json", "model", "checkpoints"})):
        cell = Cell(config=ARM, folder=tmp_path / module, module=module)
        for name in ("model", "checkpoints"):
            (cell.folder / name).mkdir(parents=True)
            (cell.folder / name / "weights").write_text("x")
        (cell.folder / "run.json").write_text("{}")
        trial = Running(study=None, trial=None, method=METHOD, cells=[cell], prune=True)
        trial.clear()
        trial.clear()
        assert {path.name for path in cell.folder.iterdir()} == left


def test_a_search_asks_for_what_is_left_of_its_budget(tmp_path):
    search = MethodSearch(METHOD, tmp_path, Budget(trials=3, together=2))
    first, second = search.next_trials()
    assert [trial.trial.number for trial in (first, second)] == [0, 1]
    assert first.trial.user_attrs["process"] == {"host": socket.gethostname(), "pid": os.getpid()}
    (cell,) = first.cells
    assert (cell.folder, cell.module) == (tmp_path / "trials" / "my-arm" / "0000" / "fold-0", TRIALS)
    values = first.trial.params
    assert cell.config.settings == {"kept": 1, "x": values["x"]} and cell.config.seed == study.FIRST_SEED
    assert cell.config.recipe == [RULE | {"p": values["recipe.0.p"]}]
    assert (first.prune, first.pruned, first.method) == (True, False, METHOD)
    assert [trial.trial.number for trial in search.next_trials()] == [2]
    assert search.next_trials() == []
    for trial in search.study.get_trials(deepcopy=False):
        other = {"host": socket.gethostname(), "pid": os.getppid()}
        search.study._storage.set_trial_user_attr(trial._trial_id, "process", other)
    # Another call neither asks for the evenly spread ones again nor for what another process is at.
    again = MethodSearch(METHOD, tmp_path, Budget(trials=4, together=2))
    assert again.left == [] and len(again.next_trials()) == 1
    assert len(again.study.get_trials()) == 4


def test_what_a_dead_process_left_is_taken_up_where_it_stood(tmp_path):
    search = MethodSearch(METHOD, tmp_path, Budget(trials=2, together=1, prune=False))
    (left,) = search.next_trials()
    left.trial.set_user_attr("process", {"host": socket.gethostname(), "pid": 2**22 - 1})
    left.cells[0].folder.mkdir(parents=True)
    (left.cells[0].folder / "stop").touch()
    again = MethodSearch(METHOD, tmp_path, Budget(trials=2, together=1, prune=False))
    taken, new = again.next_trials()
    assert (taken.trial.number, taken.pruned, taken.prune) == (0, True, False)
    assert taken.cells[0].config == left.cells[0].config
    assert (new.trial.number, new.pruned) == (1, False)
    assert again.next_trials() == []


def test_folds_are_cells_that_validate_on_parts_in_turn(tmp_path, tiny):
    method = Method(arm=tiny("a", recipe=[RULE]), settings={"recipe.0.p": Range(low=0.0, high=0.5)})
    (trial,) = MethodSearch(method, tmp_path, Budget(trials=1, folds=3)).next_trials()
    assert [cell.folder.name for cell in trial.cells] == ["fold-0", "fold-1", "fold-2"]
    parts = [(cell.config.training.folds, cell.config.training.fold) for cell in trial.cells]
    assert parts == [(3, 0), (3, 1), (3, 2)] and {cell.module for cell in trial.cells} == {TRAINING}
    with pytest.raises(InputError, match="--folds needs run configs"):
        in_fold(ARM, 0, 2)


def test_whether_another_process_goes_on_is_known_of_this_machine_alone():
    def trial(**process):
        return SimpleNamespace(user_attrs={"process": process}, datetime_start=started)

    started = datetime.now() - timedelta(seconds=60)
    here = socket.gethostname()
    assert alive(trial(host=here, pid=os.getppid()))
    assert not alive(trial(host=here, pid=os.getpid())) and not alive(trial(host=here, pid=2**22 - 1))
    assert alive(trial(host="elsewhere", pid=1)) and alive(
        SimpleNamespace(user_attrs={}, datetime_start=started)
    )
    started -= timedelta(hours=2)
    assert not alive(trial(host="elsewhere", pid=1))


def test_a_search_has_an_id_that_stays(tmp_path):
    give_id(tmp_path)
    first = json.loads((tmp_path / study.SEARCH).read_text())
    assert list(first) == ["id"] and len(first["id"]) == 32
    give_id(tmp_path)
    assert json.loads((tmp_path / study.SEARCH).read_text()) == first


def test_a_damaged_journal_and_a_folder_of_something_else_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="exists and is no search"):
        tune([METHOD], tmp_path / "a", None, Budget(), on_event=print, on_trial=print)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / study.JOURNAL).write_text('{"op_code": 99}\n[1]\n')
    with pytest.raises(InputError, match="is damaged; choose another folder"):
        open_study(tmp_path / "b", "x", Budget())


@pytest.fixture
def ended(tmp_path, monkeypatch):
    """Search without training: every run ends with the square of its x; return what was told."""

    def ended(**budget):
        told, stop_at = [], budget.pop("stop_at", None)

        def run_cells(cells, engine, *, on_event, on_outcome):
            outcomes = []
            for cell in cells:
                on_event(cell, {"step": 1})
                on_outcome(None)
                outcomes.append(finished(cell, cell.config.settings["x"] ** 2))
                if len(told) == stop_at:
                    outcomes[-1] = Outcome(cell=cell, status="stopped")
            told.append(engine)
            return outcomes

        monkeypatch.setattr(study, "run_cells", run_cells)
        trials, events = [], []
        tune(
            [METHOD],
            tmp_path / "out",
            "engine",
            Budget(**budget),
            on_event=lambda cell, event: events.append((cell.folder.parent.name, event)),
            on_trial=lambda method, trial: trials.append((method, trial)),
        )
        return told, trials, events

    return ended


def test_a_search_goes_round_until_its_budget_is_spent(ended, monkeypatch, tmp_path):
    monkeypatch.setattr(study, "check_arms", lambda arms: None)
    told, trials, events = ended(trials=3, together=2)
    assert told == ["engine"] * 2 and all(method is METHOD for method, _ in trials)
    assert [trial.number for _, trial in trials] == [0, 1, 2]
    for _, trial in trials:
        assert trial.value == pytest.approx(trial.params["x"] ** 2) and trial.state.name == "COMPLETE"
    assert events == [(f"{number:04d}", {"step": 1}) for number in range(3)]
    assert (tmp_path / "out" / study.SEARCH).exists()
    assert ended(trials=3, together=2) == ([], [], [])
    with pytest.raises(KeyboardInterrupt):
        ended(trials=5, together=1, stop_at=0)
