"""The tables: their numbers against the records, and Markdown that a name cannot break."""

import pytest

from transformer_dropout.compare.records import load_comparison
from transformer_dropout.compare.table import (
    NOTHING,
    Table,
    cost_of,
    cost_table,
    detail_table,
    result_estimate,
    result_table,
    unit,
)
from transformer_dropout.compare.verdicts import judge


def test_result_rows(folder):
    path = folder.write()
    folder.change("twin", 3, status="failed")
    comparison = load_comparison(path)
    table = result_table(comparison, judge(comparison))
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(rows) == ["none", "dropout p=0.1", "learned", "twin"]
    losses = list(comparison.losses("none").values())
    assert rows["none"]["val loss ± 95 %"].startswith(f"{sum(losses) / 5:.3f} ± 0.")
    assert rows["learned"]["keep % / evaluated"] == "62.3 / 38.8"
    assert rows["none"]["keep % / evaluated"] == NOTHING
    assert rows["dropout p=0.1"]["difference [95 %]"] == NOTHING
    assert rows["dropout p=0.1"]["verdict"] == "reference"
    assert rows["learned"]["difference [95 %]"].startswith("-0.0")
    assert (rows["twin"]["seeds"], rows["none"]["seeds"]) == ("4 of 5", "5")
    assert (rows["none"]["size, M"], rows["learned"]["size, M"]) == ("1.34", "1.54")


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


def test_costs_that_no_run_tells_are_none(folder):
    path = folder.write(seeds=(1,))
    folder.change("none", 1, parameters={}, flops={}, result={"val_loss": 2.0})
    (folder.cell("none", 1) / "metrics.jsonl").unlink()
    comparison = load_comparison(path)
    cost = cost_of(comparison, "none")
    assert set(vars(cost).values()) == {None}
    assert result_estimate(comparison, "none", "train_loss") is None
    row = cost_table(comparison).rows[0]
    assert row == ("none", "2.000", *[NOTHING] * 7)


def test_detail_rows_carry_both_tests(folder):
    table = detail_table(judge(load_comparison(folder.write(seeds=(1, 2, 3)))))
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


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3e15, None], ("P", 1e15)), ([2e12, 9e11], ("T", 1e12)), ([5.0], ("", 1.0)), ([None], ("", 1.0))],
)
def test_unit_suits_the_largest_value(values, expected):
    assert unit(values) == expected
