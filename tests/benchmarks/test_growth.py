import pytest
import torch

from benchmarks import growth
from benchmarks.row import Budget
from benchmarks.saved_bytes import saved_bytes


def test_saved_bytes_are_those_of_what_autograd_keeps():
    x = torch.randn(10, 20, requires_grad=True)
    assert saved_bytes(lambda: x.sin()) == 800
    assert saved_bytes(lambda: x.sin(), apart_from=[x]) == 0
    assert saved_bytes(lambda: (x * 2).sin(), apart_from=[x]) == 800


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(growth, "WIDTHS", (16, 32))
    monkeypatch.setattr(growth, "CONTEXTS", (8, 16, 32))
    monkeypatch.setattr(growth, "KEEPS", ())


def test_cost_is_measured_at_every_point(small):
    told = []
    found = growth.measure_growth(Budget(rounds=1), told.append)
    assert told == ["width 16", "width 32", "context 8", "context 16", "context 32"]
    assert len(told) == growth.points_to_measure(Budget())
    for axis in ("width", "context"):
        points = found[axis]["points"]
        for side in ("reference", "LearnedDropout", "no dropout"):
            assert all(point["seconds"][side] > 0 for point in points)
            saved = [point["saved_bytes"][side] for point in points]
            assert saved == sorted(saved) and len(set(saved)) == len(saved)
        last = points[-1]["saved_bytes"]
        assert last["no dropout"] < last["LearnedDropout"] < last["reference"]


def test_a_quick_budget_measures_every_other_point(small):
    assert growth.points_to_measure(Budget(quick=True)) == 3
