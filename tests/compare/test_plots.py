"""Figures: valid SVG that stands alone, and no figure where there is nothing to see."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from transformer_dropout.compare.plots import (
    cost_figure,
    curve,
    forest_figure,
    keep_figure,
    metric_figure,
)
from transformer_dropout.compare.records import load_comparison
from transformer_dropout.compare.svg import styles
from transformer_dropout.compare.verdicts import judge

FIGURES = (metric_figure, keep_figure, forest_figure, cost_figure)


def draw(figure, comparison):
    return figure(comparison, judge(comparison))


def words(svg):
    return [text for node in ElementTree.fromstring(svg).iter() if (text := (node.text or "").strip())]


@pytest.mark.parametrize("figure", FIGURES)
def test_figures_are_svg_with_text_in_the_pages_ink_and_a_label(folder, figure):
    svg = draw(figure, load_comparison(folder.write(seeds=(1, 2, 3))))
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label")
    assert root.get("width") is None
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "learned" in words(svg)
    assert len(svg) < 100_000


def test_titles_say_what_is_seen(folder):
    comparison = load_comparison(folder.write())
    titles = [ElementTree.fromstring(draw(figure, comparison)).get("aria-label") for figure in FIGURES]
    assert titles == [
        "Validation loss ends lowest with learned, highest with none",
        "Masks end up keeping 62 % with learned, 93 % with twin",
        "Of 3 arms, 1 shown better and 1 shown worse than dropout p=0.1",
        "Validation loss against what training cost: lower and further left is better",
    ]


def test_the_forest_labels_both_sides_and_every_interval(folder):
    found = words(draw(forest_figure, load_comparison(folder.write())))
    assert {"← better", "worse →"} <= set(found)
    assert sum(text.startswith("p ") for text in found) == 3


def test_figures_without_data_are_left_out(folder, arm_of):
    path = folder.write({"a": arm_of(0.0), "b": arm_of(0.1)}, seeds=(1, 2))
    comparison = load_comparison(path)
    assert draw(keep_figure, comparison) is None
    nothing = replace(comparison, runs=())
    assert [draw(figure, nothing) for figure in FIGURES] == [None] * 4


def test_twelve_arms_with_awkward_names_and_one_seed_can_be_drawn(folder, arm_of):
    names = ["_hidden", "$x$ <b> & co", "é 漢字", "a" * 80, *(f"arm {k}" for k in range(8))]
    arms = {name: arm_of(0.1 * k, keep=0.5 if k % 2 else None) for k, name in enumerate(names)}
    comparison = load_comparison(folder.write(arms, seeds=(1,)))
    for figure in FIGURES:
        svg = draw(figure, comparison)
        ElementTree.fromstring(svg)
        assert any("$x$ <b> & co" in text for text in words(svg)) or figure is keep_figure
    assert "_hidden" in words(draw(metric_figure, comparison))


def test_styles_differ_and_the_reference_is_ink():
    arms = [f"arm {k}" for k in range(12)]
    found = styles(arms, "arm 3")
    assert len({(style.colour, style.line, style.marker) for style in found.values()}) == 12
    assert (found["arm 3"].colour, found["arm 3"].marker) == ("#010203", "*")


def test_a_curve_is_the_mean_and_range_at_common_steps(folder):
    comparison = load_comparison(folder.write(seeds=(1, 2)))
    first, second = comparison.usable("none")
    shorter = replace(second, metrics=second.metrics[::2])
    found = curve([first, shorter], "val_loss")
    assert found is not None
    assert len(found.passes) == 11
    last = [run.metrics[-1]["val_loss"] for run in (first, second)]
    assert (found.low[-1], found.high[-1]) == (min(last), max(last))
    assert found.mean[-1] == pytest.approx(sum(last) / 2)
    assert curve([], "val_loss") is None
    assert curve([first], "keep") is None


def test_drawing_leaves_matplotlibs_settings_alone(folder):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    draw(metric_figure, load_comparison(folder.write(seeds=(1, 2))))
    assert dict(mpl.rcParams) == before


def test_the_forest_says_when_nothing_is_shown(folder):
    comparison = load_comparison(folder.write(seeds=(1,)))
    assert "No arm is shown to differ from dropout p=0.1" in words(draw(forest_figure, comparison))


def test_where_higher_is_better_the_sides_change_and_shares_are_percent(folder, accuracy_task):
    comparison = load_comparison(folder.write(task=accuracy_task))
    forest = words(draw(forest_figure, comparison))
    assert {"← worse", "better →"} <= set(forest)
    assert "validation accuracy minus that of dropout p=0.1, points" in forest
    # The best stands on top, which is the last row.
    names = [text for text in forest if text in ("none", "learned")]
    assert names == ["none", "learned"]
    assert any(text.endswith("%") for text in words(draw(metric_figure, comparison)))
    title = ElementTree.fromstring(draw(cost_figure, comparison)).get("aria-label")
    assert title == "Validation accuracy against what training cost: higher and further left is better"


def test_runs_that_count_no_passes_are_drawn_over_steps(folder):
    path = folder.write(seeds=(1, 2))
    for metrics in path.glob("runs/*/*/metrics.jsonl"):
        metrics.write_text(metrics.read_text().replace('"epochs"', '"unknown"'))
    assert "step" in words(draw(metric_figure, load_comparison(path)))
