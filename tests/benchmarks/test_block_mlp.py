"""The block-masked MLP's rows at a small width."""

import pytest
import torch

from benchmarks import block_mlp
from benchmarks.row import Budget
from transformer_dropout.layers import block_dropout

SMALL = {"width": 64, "tokens": 256, "block": 64}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_ratio_comes_with_what_was_checked(dtype):
    measured = block_mlp.block_mlp_ratio(Budget(rounds=2), keep=0.25, dtype=dtype, **SMALL)
    assert measured.about["shape"] == {"tokens": 256, "width": 64, "hidden": 256, "block": 64}
    assert abs(measured.about["keep"] - 0.25) < 0.1
    # The masks of the check and those of the timing are other draws.
    assert abs(measured.about["computed"] - 0.25) < 0.1
    assert measured.about["predictor_parameters"] == 16 * 64 + 4 * 16 + 4
    assert len(measured.per_round) == 2


def test_a_quick_budget_takes_half_of_the_tokens():
    measured = block_mlp.block_mlp_ratio(Budget(rounds=1, quick=True), **SMALL)
    assert measured.about["shape"]["tokens"] == 128


def test_a_wrong_product_stops_the_measurement(monkeypatch):
    grouped = block_dropout.grouped_mlp
    monkeypatch.setattr(
        block_dropout, "grouped_mlp", lambda *arguments, **more: 1.001 * grouped(*arguments, **more)
    )
    with pytest.raises(AssertionError, match=r"differs from masking by 1\.0e-03"):
        block_mlp.block_mlp_ratio(Budget(rounds=1), keep=0.25, **SMALL)


def test_the_rows_are_both_ends_of_the_range_in_both_precisions():
    assert len({row.name for row in block_mlp.ROWS}) == 4
    assert {row.target for row in block_mlp.ROWS} == {2.1, 1.5}
