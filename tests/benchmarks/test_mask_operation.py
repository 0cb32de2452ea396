"""The rows of the mask operation measure what they say."""

import pytest
import torch

from benchmarks import mask_operation
from benchmarks.mask_operation import ROWS, Step, bytes_an_element, check
from benchmarks.published_twin import PublishedMask, PublishedTwin
from benchmarks.row import Budget
from transformer_dropout.kernels._native import numba_installed, pure_pytorch
from transformer_dropout.layers import LearnedDropout


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(mask_operation, "QUICK_TOKENS", 64)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name}, {row.path}")
def test_every_row_is_measured(row, small, monkeypatch):
    monkeypatch.setattr(mask_operation, "calls_for", lambda step: 1)
    measurement = row.measure(Budget(rounds=2, quick=True))
    assert measurement.value > 0
    assert "within" in measurement.gate
    if row.unit == "x":
        assert len(measurement.per_round) == 2
        assert "ours" in measurement.seconds


def test_the_bytes_are_the_masks_alone():
    step = Step(320, 144)
    with pure_pytorch():
        assert bytes_an_element(step, mask_operation.ours) == 1
    if numba_installed():
        assert bytes_an_element(step, mask_operation.ours) == 0.125
    assert bytes_an_element(step, PublishedMask()) >= 16


@pytest.mark.parametrize("wrong", ["gradient", "penalty", "mask"])
def test_an_operation_that_computes_something_else_is_not_timed(wrong, monkeypatch):
    right = mask_operation.ours

    def other(x, gate, shift):
        y, penalty = right(x, gate * 1.01 if wrong == "gradient" else gate, shift)
        return (y + 1e-3 * x if wrong == "mask" else y), penalty * (1.01 if wrong == "penalty" else 1)

    step = Step(500, 64)
    check(step)
    monkeypatch.setattr(mask_operation, "ours", other)
    with pytest.raises(AssertionError):
        check(step)


def test_the_published_twin_has_the_results_of_the_layer():
    torch.manual_seed(0)
    ours, theirs = (kind(24, 3, shift=1.2) for kind in (LearnedDropout, PublishedTwin))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(8, 50, 24)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    ours.train()(x), theirs.train()(x)
    torch.testing.assert_close(ours.take_penalty(), theirs.take_penalty())
    theirs(x)
    assert theirs.published.changed == 0
    assert 0 < theirs.published.entropy < 1
