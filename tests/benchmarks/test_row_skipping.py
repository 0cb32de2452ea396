"""The row-skipping rows at a small width."""

import pytest
import torch

from benchmarks import row_skipping
from benchmarks.row import Budget


def test_a_ratio_comes_with_what_was_checked():
    torch.manual_seed(0)
    measured = row_skipping.kept_rows_ratio(Budget(rounds=2, quick=True), width=64, keep=0.25)
    assert measured.about["shape"] == [64, 256]
    assert 5 < measured.about["kept"] < 28
    assert len(measured.per_round) == 2


def test_a_wrong_product_stops_the_measurement(monkeypatch):
    monkeypatch.setattr(row_skipping, "kept_rows", lambda weight, x, kept: weight @ x)
    with pytest.raises(AssertionError, match="the kept rows differ"):
        row_skipping.kept_rows_ratio(Budget(rounds=1), width=64, keep=0.25)


def test_there_is_a_row_for_each_width_and_fraction():
    assert len(row_skipping.ROWS) == len({row.name for row in row_skipping.ROWS}) == 6
    assert {row.target for row in row_skipping.ROWS} == {2.6, 1.9, 1.35}
