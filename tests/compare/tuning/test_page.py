"""The page of a search: its tables, its curves, and the same numbers as data."""

import json

import numpy as np
import pytest

from transformer_dropout.compare.table import Table
from transformer_dropout.compare.tuning.page import (
    budget_table,
    explanation,
    figure,
    html,
    plain,
    tuning_table,
    value_text,
    write_page,
)
from transformer_dropout.compare.tuning.results import Found, Tried, curve, expected_best
from transformer_dropout.compare.tuning.space import Choice, Method, Range
from transformer_dropout.runs.trial_config import TrialConfig

SETTINGS = {
    "lr": Range(low=1e-4, high=1e-1, log=True),
    "p": Range(low=0.0, high=1.0),
    "kind": Choice(values=("a", 2)),
}
ABOUT = {"command": "td.tune()", "metric": "loss", "trials": 9, "folds": 1, "quasi_random": 4}


def found(name="mine & <yours>", values=(3.0, 1.0, 2.0), settings=SETTINGS):
    tried = [
        Tried(number=n, values={"lr": 10.0 ** -(n + 1), "p": 0.123456, "kind": "a"}, value=value)
        for n, value in enumerate(values)
    ]
    method = Method(arm=TrialConfig(name=name), settings=settings)
    return Found(method=method, tried=tuple(tried), pruned=5, failed=6)


def test_a_row_says_what_was_found_and_how_the_trials_ended():
    table = tuning_table([found(), found("b", [0.5])])
    assert table.columns == ("method", "trials", "pruned", "failed", "best", "settings of the best")
    assert table.rows == (
        ("mine & <yours>", "3", "5", "6", "1.0000", "lr 0.01, p 0.123, kind a"),
        ("b", "1", "5", "6", "0.5000", "lr 0.1, p 0.123, kind a"),
    )
    assert [value_text(value) for value in (0.00012345, 3, "a", True)] == ["0.000123", "3", "a", "True"]


def test_the_expected_best_has_as_many_columns_as_there_were_trials():
    table = budget_table([found("a"), found("b", [4.0, 2.0, 3.0, 5.0])])
    assert table.columns == ("method", "of 1", "of 2", "of 4")
    for row, values in zip(table.rows, ([3.0, 1.0, 2.0], [4.0, 2.0, 3.0, 5.0]), strict=True):
        assert row[1:] == tuple(f"{expected_best(values, count):.4f}" for count in (1, 2, 4))
    assert [row[0] for row in table.rows] == ["a", "b"]


def test_a_reader_is_told_what_the_values_are():
    text = explanation(ABOUT)
    assert text.startswith("Values are loss at the last step on validation; less is better.")
    assert "had 9 trials, 4 spread evenly" in text
    assert "on validation, each the mean of 3 folds; less" in explanation(ABOUT | {"folds": 3})


def test_curves_are_drawn_over_numbers_of_three_trials_or_more():
    drawn = figure(found(), "loss")
    assert drawn.startswith("<figure><svg") and drawn.endswith("</figcaption></figure>")
    assert "mine &amp; &lt;yours&gt;: each point is a trial." in drawn
    assert drawn.count('id="axes_') == 2
    assert "10" in drawn and drawn.count("loss, mine") == 1
    assert figure(found(values=[1.0, 2.0]), "loss") == ""
    assert figure(found(settings={"kind": SETTINGS["kind"]}), "loss") == ""


@pytest.mark.parametrize("name", ["plain", "costs $_$ more"])
def test_the_same_trials_give_the_same_figure(name):
    assert figure(found(name), "loss") == figure(found(name), "loss") != ""


def test_a_table_is_escaped():
    assert html(Table(columns=("a", "<b>"), rows=(("&", "1"), ("x", "2")))) == (
        "<table><thead><tr><th>a</th><th>&lt;b&gt;</th></tr></thead><tbody>"
        "<tr><td>&amp;</td><td>1</td></tr><tr><td>x</td><td>2</td></tr></tbody></table>"
    )


def test_trials_are_kept_as_data():
    assert plain(found("a", [3.0])) == {
        "name": "a",
        "pruned": 5,
        "failed": 6,
        "trials": [{"number": 0, "settings": {"lr": 0.1, "p": 0.123456, "kind": "a"}, "value": 3.0}],
    }


@pytest.mark.parametrize("values", [(3.0, 1.0, 2.0), (1.0,)])
def test_a_page_its_text_and_its_data_are_written(tmp_path, values):
    one = found(values=values)
    page = write_page([one], tmp_path, ABOUT, "td.compare <fresh>")
    assert page == tmp_path / "tuning.html"
    assert json.loads((tmp_path / "tuning.json").read_text()) == {**ABOUT, "methods": [plain(one)]}
    tables = tuning_table([one]), budget_table([one])
    assert (tmp_path / "tuning.md").read_text() == (
        f"{tables[0].markdown()}\nExpected best of so many trials:\n\n{tables[1].markdown()}\n"
        f"{explanation(ABOUT)}\n\n    td.compare <fresh>\n"
    )
    text = page.read_text()
    assert text.startswith('<!doctype html><html lang="en">') and text.endswith("</html>")
    assert all(html(table) in text for table in tables)
    assert "<pre>td.compare &lt;fresh&gt;</pre>" in text
    assert text.count("<figure>") == (len(values) > 2)


def test_a_curve_is_drawn_through_its_trials_on_the_scale_of_the_search(monkeypatch):
    drawn = []

    def savefig(self, file, **words):
        drawn.append((self, words))
        file.write("<?xml?><svg/>")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)
    one = found("mine")
    assert figure(one, "loss") == (
        "<figure><svg/><figcaption>mine: each point is a trial.</figcaption></figure>"
    )
    ((made, words),) = drawn
    assert words == {"format": "svg", "metadata": {"Date": None}} and made.get_size_inches()[0] == 8.4
    for axes, key, scale, label in zip(
        made.axes, ("lr", "p"), ("log", "linear"), ("loss, mine", ""), strict=True
    ):
        line = curve(one.tried, key, SETTINGS[key])
        mean, points = axes.get_lines()
        assert np.allclose(mean.get_xdata(), line.at) and np.allclose(mean.get_ydata(), line.mean)
        assert list(points.get_ydata()) == [3.0, 1.0, 2.0]
        assert list(points.get_xdata()) == [trial.values[key] for trial in one.tried]
        assert (points.get_marker(), points.get_markersize(), points.get_color()) == ("o", 3, "#333")
        assert (axes.get_xscale(), axes.get_xlabel(), axes.get_ylabel()) == (scale, key, label)
        (band,) = axes.collections
        assert band.get_alpha() == 0.25 and mean.get_color() == "#0072B2"
