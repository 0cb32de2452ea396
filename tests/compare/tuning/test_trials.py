"""`td.tune`: what the search is asked for, and what its page says."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from transformer_dropout.compare.tuning import trials
from transformer_dropout.compare.tuning.space import Range
from transformer_dropout.errors import InputError

PLACE = f"{Path(__file__).resolve()}:train"
SPACE = {"lr": {"low": 1e-5, "high": 1e-3, "log": True}}


def train(trial):
    """A training that is never called here."""


@pytest.fixture
def seen(monkeypatch):
    """What is called with what, where nothing is searched."""
    seen = {"without": []}

    def search(methods, folder, engine, budget, *, on_event, on_trial):
        on_event(None, {}), on_trial(None, None)
        seen.update(methods=methods, folder=folder, engine=engine, budget=budget)

    monkeypatch.setattr(trials, "search", search)
    monkeypatch.setattr(
        trials, "choose_engine", lambda on, folder, resources: SimpleNamespace(jobs=4, asked=(on, folder))
    )
    monkeypatch.setattr(trials, "open_study", lambda *given: given)
    monkeypatch.setattr(
        trials,
        "found_by_all",
        lambda methods, study_of: ([(m, study_of(m.arm.slug())) for m in methods], seen["without"]),
    )
    monkeypatch.setattr(trials, "metric_name", lambda folder: f"metric of {folder}")
    monkeypatch.setattr(trials, "write_page", lambda *given: seen.update(page=given))
    return seen


def test_every_arm_is_searched_under_one_budget_and_shown(seen, tmp_path):
    found = trials.tune(
        PLACE,
        arms={"A b": [], "c": "lima"},
        space=SPACE,
        trials=7,
        out=tmp_path,
        on="local:2",
        settings={"width": 3},
        steps=5,
        metric="val_f1:higher",
    )
    for method in seen["methods"]:
        assert method.settings == {"lr": Range(low=1e-5, high=1e-3, log=True)}
        arm = method.arm
        assert (arm.settings, arm.steps, arm.metric, arm.function) == (
            {"width": 3},
            5,
            "val_f1:higher",
            PLACE,
        )
    assert [method.arm.name for method in seen["methods"]] == ["A b", "c"]
    assert (seen["folder"], seen["engine"].asked) == (tmp_path, ("local:2", tmp_path))
    budget = seen["budget"]
    assert (budget.trials, budget.together) == (7, 2)
    assert found == [
        (method, (tmp_path, slug, budget)) for method, slug in zip(seen["methods"], ("a-b", "c"), strict=True)
    ]
    about = {
        "command": f"td.tune({PLACE!r})",
        "metric": f"metric of {tmp_path}",
        "trials": 7,
        "folds": 1,
        "quasi_random": budget.quasi_random,
    }
    next_step = "td.compare the settings above with seeds=5, which are fresh"
    assert seen["page"] == (found, tmp_path, about, next_step)


def test_a_function_is_found_by_its_place_and_the_rest_has_defaults(seen, monkeypatch):
    monkeypatch.setattr(trials, "place_of", lambda function: PLACE)
    trials.tune(train, arms={"a": []}, space=SPACE)
    assert seen["methods"][0].arm.function == PLACE
    assert (seen["folder"], seen["budget"].trials) == (Path("runs/tune"), 40)
    assert seen["engine"].asked[0] is None and seen["budget"].together == 4


def test_a_space_that_is_none_is_refused(seen):
    with pytest.raises(InputError):
        trials.tune(PLACE, arms={"a": []}, space={"lr": {"low": 1, "hihg": 2}})
    assert seen == {"without": []}


def test_an_arm_without_a_value_is_told_of_behind_the_page_of_the_others(seen, tmp_path):
    seen["without"] = ["No trial of a ended with a value.", "nor of b."]
    with pytest.raises(
        InputError, match=rf"^No trial of a ended with a value\. The others are in {tmp_path}/tun"
    ):
        trials.tune(PLACE, arms={"a": []}, space=SPACE, out=tmp_path)
    assert seen["page"][1] == tmp_path
