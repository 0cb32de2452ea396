"""The tables: their numbers against the records, and Markdown that a name cannot break."""

import json
from dataclasses import replace

import pytest

from transformer_dropout.compare.records import load_comparison
from transformer_dropout.compare.table import (
    NOTHING,
    Table,
    cost_of,
    cost_table,
    detail_table,
    escaped,
    metrics_table,
    result_estimate,
    result_table,
    unit,
)
from transformer_dropout.compare.verdicts import judge

PLAIN = {"select": "mlp_output", "layer": "Dropout", "p": 0.1}


def by_arm(table):
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def tables(path):
    comparison = load_comparison(path)
    judgement = judge(comparison)
    return result_table(comparison, judgement), metrics_table(comparison, judgement)


def test_result_rows(folder):
    path = folder.write()
    folder.change("twin", 3, status="failed")
    rows = by_arm(tables(path)[0])
    assert list(rows) == ["none", "dropout p=0.1", "learned", "twin"]
    losses = list(load_comparison(path).values("none").values())
    assert rows["none"]["val loss ± 95 %"].startswith(f"{sum(losses) / 5:.3f} ± 0.")
    assert rows["learned"]["keep % / evaluated"] == "62.3 / 38.8"
    assert rows["none"]["keep % / evaluated"] == NOTHING
    assert rows["dropout p=0.1"]["difference [95 %]"] == NOTHING
    assert rows["dropout p=0.1"]["verdict"] == "reference"
    assert rows["learned"]["difference [95 %]"].startswith("-0.0")
    assert (rows["twin"]["seeds"], rows["none"]["seeds"]) == ("4 of 5", "5")
    # Without regularizer the best evaluation lies before the end.
    assert float(rows["none"]["best val loss"]) < sum(losses) / 5 - 0.1
    assert rows["none"]["difference at best [95 %]"] != rows["none"]["difference [95 %]"]


def test_the_seeds_still_needed_stand_in_the_row(folder):
    path = folder.write(seeds=(1, 2, 3))
    rows = by_arm(tables(path)[0])
    assert rows["dropout p=0.1"]["more seeds to show 0.05"] == NOTHING
    assert rows["learned"]["more seeds to show 0.05"] == "0"
    record = json.loads((path / "comparison.json").read_text())
    (path / "comparison.json").write_text(json.dumps(record | {"difference": 0.0005}))
    assert by_arm(tables(path)[0])["learned"]["more seeds to show 0.0005"] == "> 1,000"
    (path / "comparison.json").write_text(json.dumps(record | {"difference": 1.5}))
    assert by_arm(tables(path)[0])["learned"]["more seeds to show 1.5"] == "0"
    (path / "comparison.json").write_text(json.dumps(record | {"difference": 0.01}))
    assert 0 < int(by_arm(tables(path)[0])["learned"]["more seeds to show 0.01"]) < 30


def test_the_words_and_units_are_the_tasks(folder, accuracy_task):
    results, others = tables(folder.write(task=accuracy_task))
    row = by_arm(results)["learned"]
    assert row["verdict"] == "better"
    assert 50 < float(row["val accuracy % ± 95 %"].split(" ")[0]) < 60
    low, high = map(float, row["difference points [95 %]"].split("[")[1].rstrip("]").split(","))
    assert 0 < low < high
    assert others.columns == (
        "arm",
        "test accuracy % ± 95 %",
        "difference points [95 %]",
        "test loss ± 95 %",
        "difference [95 %]",
        "val loss ± 95 %",
        "difference [95 %]",
    )
    loss = others.rows[2][4]
    assert loss.startswith("-0.0")


def test_a_task_of_one_metric_without_test_has_no_other_table(folder):
    assert tables(folder.write(seeds=(1, 2)))[1] is None


def test_no_row_shows_an_interval_that_its_verdict_does_not_read(folder, arm_of):
    for noise in (0.002, 0.01, 0.03, 0.08):
        folder.noise, folder.path = noise, folder.path.with_name(f"out-{noise}")
        effects = {f"arm {k}": arm_of(0.01 * k * k) for k in range(7)}
        table = tables(folder.write({"drop": arm_of(0.0, [PLAIN]), **effects}, seeds=(1, 2, 3)))[0]
        for row in by_arm(table).values():
            if row["verdict"] != "reference":
                low, high = map(float, row["difference [95 %]"].split("[")[1].rstrip("]").split(","))
                assert (row["verdict"] == "no difference") == (low <= 0 <= high)


def test_cost_rows_share_one_unit_and_stand_beside_the_loss(folder):
    table = cost_table(load_comparison(folder.write(seeds=(1, 2, 3))))
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert rows["none"]["training, TFLOP"] == "66.36"  # 8.1e6 a token, 2000 steps of 4096 tokens
    assert rows["learned"]["training, TFLOP"] == "79.63"
    assert rows["none"]["steps"] == "2,000"
    assert rows["none"]["run, s"] == "133.0"
    assert (rows["none"]["step, ms"], rows["learned"]["step, ms"]) == ("50.0", "62.0")
    assert rows["none"]["peak memory, MB"] == "900"
    assert rows["none"]["inference, MFLOP/token"] == "2.70"


def test_sizes_are_without_positions_where_the_records_tell_them_apart(folder):
    path = folder.write(seeds=(1,))
    assert "parameters" in cost_table(load_comparison(path)).columns[7]
    folder.change("none", 1, parameters={"total": 12_000, "without_positional": 9_000})
    table = cost_table(load_comparison(path))
    assert table.columns[7].startswith("parameters without positions")
    assert cost_of(load_comparison(path), "none").parameters == 9_000


def test_costs_that_no_run_tells_are_none(folder):
    path = folder.write(seeds=(1,))
    folder.change("none", 1, parameters={}, flops={}, result={"val_loss": 2.0})
    (folder.cell("none", 1) / "metrics.jsonl").unlink()
    comparison = load_comparison(path)
    cost = cost_of(comparison, "none")
    assert set(vars(cost).values()) == {None}
    assert result_estimate(comparison, "none", "train_loss") is None
    table = cost_table(comparison)
    assert table.rows[0] == ("none", "2.000", *[NOTHING] * 7)
    assert len(table.columns) == 9
    alone = cost_table(replace(comparison, arms=("none",)))
    assert alone.rows == (("none", "2.000"),)


def test_a_step_is_told_by_the_median(folder):
    path = folder.write(seeds=(1,))
    rows = [{"step": at, "step_seconds": seconds} for at, seconds in enumerate((9.0, 0.01, 0.02, 0.04))]
    (folder.cell("none", 1) / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cost_of(load_comparison(path), "none").step_seconds == pytest.approx(0.03)


def test_flops_are_counted_by_the_tasks_item(folder, accuracy_task):
    comparison = load_comparison(folder.write(seeds=(1,), task=accuracy_task))
    assert cost_of(comparison, "none").training_flops == 1e6 * 2000 * 4096
    assert cost_table(comparison).columns[-1] == "inference, kFLOP/image"


def both(path):
    comparison = load_comparison(path)
    return comparison, judge(comparison)


def test_detail_rows_carry_both_tests(folder):
    table = detail_table(*both(folder.write(seeds=(1, 2, 3))))
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert set(rows) == {"none", "learned", "twin"}
    assert (rows["none"]["sign-flip p"], rows["none"]["its floor"], rows["none"]["pairs"]) == (
        "0.25",
        "0.25",
        "3",
    )


def test_markdown_aligns_numbers_and_escapes_names():
    table = Table(columns=("arm", "x"), rows=(("a|b <i>\nc", "1"),))
    assert table.markdown() == "| arm | x |\n| --- | ---: |\n| a\\|b &lt;i> c | 1 |\n"


def test_a_name_becomes_no_link_picture_or_emphasis():
    assert escaped("![x](http://a) *b* `c`") == "![x]\\(http://a) \\*b\\* \\`c\\`"
    assert escaped("0.1 [0.0, 0.2]") == "0.1 [0.0, 0.2]"


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3e15, None], ("P", 1e15)), ([2e12, 9e11], ("T", 1e12)), ([5.0], ("", 1.0)), ([None], ("", 1.0))],
)
def test_unit_suits_the_largest_value(values, expected):
    assert unit(values) == expected
