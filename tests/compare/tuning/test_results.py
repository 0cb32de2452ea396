"""What a search shows, against numbers worked out by hand and by simulation."""

from types import SimpleNamespace

import numpy as np
import pytest

from transformer_dropout.compare.tuning.results import (
    Found,
    Tried,
    curve,
    expected_best,
    found_by,
    found_by_all,
    local_line,
    write_chosen,
)
from transformer_dropout.compare.tuning.space import Method, Range
from transformer_dropout.errors import InputError
from transformer_dropout.runs.run_config import load_run_config
from transformer_dropout.runs.trial_config import TrialConfig


def test_the_expected_best_is_that_of_a_simulation():
    values = [3.0, 1.0, 2.0, 5.0]
    assert expected_best(values, 1) == pytest.approx(np.mean(values))
    draws = np.random.default_rng(0).choice(values, size=(200_000, 3)).min(axis=1)
    assert expected_best(values, 3) == pytest.approx(draws.mean(), abs=0.01)
    assert expected_best(values, 1000) == pytest.approx(1.0, abs=1e-6)


def test_a_local_line_is_exact_on_a_line_and_stands_still_on_one_place():
    x, grid = np.linspace(0, 1, 9), np.linspace(0, 1, 5)
    assert local_line(x, 2 * x + 1, grid) == pytest.approx(2 * grid + 1, abs=1e-6)
    assert local_line(np.full(4, 0.5), np.array([1.0, 2.0, 3.0, 4.0]), grid) == pytest.approx([2.5] * 5)


@pytest.mark.parametrize("log", [False, True])
def test_a_curve_finds_the_valley_and_its_band_holds_it(log):
    search = Range(low=0.01, high=1.0, log=log)
    shares = np.random.default_rng(1).uniform(size=60)
    noise = np.random.default_rng(2).normal(scale=0.05, size=60)
    tried = [
        Tried(number=n, values={"p": search.at(share)}, value=(share - 0.6) ** 2 + noise[n])
        for n, share in enumerate(shares)
    ]
    line = curve(tried, "p", search)
    assert abs(np.argmin(line.mean) / 59 - 0.6) < 0.15
    assert np.all(line.low <= line.high)
    truth = (np.linspace(0, 1, 60) - 0.6) ** 2
    assert np.mean((line.low <= truth + 0.03) & (truth - 0.03 <= line.high)) > 0.8


class Study:
    """What Optuna holds of a method."""

    def __init__(self, *trials):
        self.trials = [
            SimpleNamespace(
                number=n, state=SimpleNamespace(name=state), value=value, params={"x": n}, user_attrs=more
            )
            for n, (state, value, more) in enumerate(trials)
        ]

    def get_trials(self, *, deepcopy):
        assert not deepcopy
        return self.trials


def method(name="My arm", arm=None):
    return Method(arm=arm or TrialConfig(name=name), settings={})


WHY = {"reason": "no memory"}
ENDED = Study(
    ("COMPLETE", 2.0, {}),
    ("PRUNED", None, {}),
    ("FAIL", None, WHY),
    ("COMPLETE", 1.0, {}),
    ("RUNNING", 0, {}),
)


def test_what_a_search_holds_is_what_ended_with_a_value():
    found = found_by(method(), ENDED)
    assert found.tried == (
        Tried(number=0, values={"x": 0}, value=2.0),
        Tried(number=3, values={"x": 3}, value=1.0),
    )
    assert (found.pruned, found.failed, found.best) == (1, 1, found.tried[1])


@pytest.mark.parametrize(
    ("trials", "reason"), [([], "none ran"), ([("PRUNED", None, {}), ("FAIL", None, WHY)], "no memory")]
)
def test_a_method_of_which_nothing_has_a_value_says_why(trials, reason):
    with pytest.raises(InputError, match=rf"^No trial of 'My arm' ended with a value: {reason}\.$"):
        found_by(method(), Study(*trials))


def test_a_method_without_a_value_hides_no_other():
    studies = {"a": Study(), "b": ENDED}
    found, without = found_by_all([method("a"), method("b")], studies.__getitem__)
    assert [one.method.arm.name for one in found] == ["b"]
    assert without == ["No trial of 'a' ended with a value: none ran."]
    with pytest.raises(InputError, match="No trial of 'a'"):
        found_by_all([method("a")], studies.__getitem__)


def test_what_was_chosen_is_written_as_run_configs(tmp_path, tiny):
    arm = tiny("The arm", recipe=[{"select": "mlp_output", "layer": "Dropout", "p": 0.1}])
    best = Tried(number=0, values={"recipe.0.p": 0.25, "training.lr": 0.5}, value=1.0)
    chosen = Found(method=method(arm=arm), tried=(best,), pruned=0, failed=0)
    own = Found(method=method(), tried=(Tried(number=0, values={}, value=1.0),), pruned=0, failed=0)
    for _ in range(2):
        assert write_chosen([chosen, own], tmp_path / "out") == [tmp_path / "out" / "chosen" / "the-arm.yaml"]
    config = load_run_config(tmp_path / "out" / "chosen" / "the-arm.yaml")
    assert (config.recipe[0]["p"], config.training.lr, config.name) == (0.25, 0.5, "The arm")


def test_a_local_line_weighs_its_neighbours_by_their_distance():
    x, y = np.array([0.0, 0.2, 0.5, 0.6]), np.array([0.0, 1.0, 0.0, 3.0])
    weights = np.exp(-0.5 * ((x - 0.25) / 0.15) ** 2) + 1e-12
    slope, height = np.polyfit(x - 0.25, y, 1, w=np.sqrt(weights))
    assert local_line(x, y, np.array([0.25]))[0] == pytest.approx(height, rel=1e-4) and slope
