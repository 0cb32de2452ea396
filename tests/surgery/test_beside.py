"""What a model still draws beside a recipe, as lines of the report and as warnings."""

import inspect
import warnings

import pytest
import torch.nn.functional as F
from torch import nn

import transformer_dropout as td
from transformer_dropout.errors import InputError
from transformer_dropout.surgery import _beside
from transformer_dropout.surgery._beside import beside, prove


class Model(nn.Module):
    """Has a rate as a number and a dropout."""

    def __init__(self):
        super().__init__()
        self.rate, self.computed, self.drop, self.none = 0.25, "0.1 * depth", nn.Dropout(0.5), nn.Dropout(0.0)


class Functional(nn.Module):
    """Drops with a function."""

    def forward(self, x):
        return F.dropout(x, 0.1)


def site(path, access="output", kind="mlp_output", **facts):
    return td.Site(path=path, kind=kind, access=access, **{"found": "run"} | facts)


def lines(*sites, ruled=(), moved=None, model=None):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return beside(model or Model(), sites, set(ruled), moved or {})


def test_places_where_the_model_itself_drops_have_a_line():
    own, number = site("drop", access="module"), site("", kind="embedding", access="rate", rate="rate")
    assert lines(own, number) == ("drop  mlp_output  0.5", "  embedding  0.25")
    assert lines(own, number, ruled=[own.name]) == ("  embedding  0.25",)
    assert lines(site("none", access="module"), site("drop")) == ()


def test_a_rate_that_code_computes_is_said_to_be_one(monkeypatch):
    assert lines(site("", rate="computed")) == ("  mlp_output  a rate that its code computes",)


def test_what_no_layer_can_silence_is_warned_of_once():
    hidden = [site(path, access="none", kind="other") for path in ("drop", "none", "drop")]
    with pytest.warns(UserWarning, match=r"no layer can take the place of, in drop, none; two") as told:
        found = beside(Model(), hidden, set(), {})
    assert found == ("drop  other", "none  other", "drop  other") and len(told) == 1


def test_a_rate_that_is_moved_under_another_place_is_warned_of():
    shared = site("", access="none", kind="other", rate="rate")
    sentence = r"dropout in the model itself reads rate too, .* from 0\.1 to 0\.25, and no layer"
    with pytest.warns(UserWarning, match=sentence):
        found = beside(Model(), [shared], set(), {"rate": 0.1})
    assert found == ("the model itself  other  rate, which the recipe has set to 0.25",)
    assert lines(shared) == ("  other  0.25",)


def functional(count):
    return nn.ModuleDict({f"f{n}": Functional() for n in range(count)})


@pytest.mark.parametrize(
    ("count", "named"), [(1, "its code; f0 drop"), (3, "f0, f1, f2 drop"), (5, "f0, f1, f2 and 2 more drop")]
)
def test_functions_are_told_of_where_the_code_was_read_and_the_user_named_nothing(count, named):
    read = site("f0", found="code")
    model = functional(count)
    with pytest.warns(UserWarning, match=f"run of this ModuleDict.*{named} with functions there"):
        found = beside(model, [read], set(), {})
    assert found == tuple(f"f{n}  other" for n in range(count))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert beside(model, [read], set(), {}, named=True) == ()
        assert beside(model, [site("f0", found="table")], set(), {}) == ()
        assert beside(nn.ModuleDict({"f0": nn.Linear(2, 2)}), [read], set(), {}) == ()


@pytest.mark.parametrize(
    ("problems", "sentence"),
    [
        (["one is wrong."], r"^one is wrong\. Hand over"),
        (["one is wrong.", "another."], r"^one is wrong\. And 1 more; see td\.check_sites"),
        (
            ["one is wrong.", "so is another.", "and this."],
            r"^one is wrong\. And 2 more; see td\.check_sites",
        ),
    ],
)
def test_a_place_that_is_not_what_it_is_called_ends_the_placement(monkeypatch, problems, sentence):
    given = []

    def checks(*words):
        given.append(words)
        return [type("Check", (), {"problem": problem}) for problem in ["", *problems]]

    monkeypatch.setattr(_beside, "checks_of", checks)
    with pytest.raises(InputError, match=sentence):
        prove("model", "inputs", ["chosen"], ["known"])
    assert given == [("model", "inputs", ["chosen"], ["known"])]
    monkeypatch.setattr(_beside, "checks_of", lambda *words: [])
    prove("model", "inputs", [], [])


def placing(*given):
    """Stand where `regularize_` stands."""
    return beside(*given)


@pytest.mark.parametrize(
    ("model", "where", "moved"),
    [
        (Model(), site("drop", access="none", kind="other"), {}),
        (Model(), site("", access="none", kind="other", rate="rate"), {"rate": 0.1}),
        (functional(1), site("f0", found="code"), {}),
    ],
)
def test_a_warning_points_at_the_line_of_the_user(model, where, moved):
    with pytest.warns(UserWarning) as told:
        line = inspect.currentframe().f_lineno + 1
        placing(model, [where], set(), moved)
    assert [warning.lineno for warning in told] == [line]
