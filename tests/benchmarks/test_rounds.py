import pytest
import torch

from benchmarks.rounds import interleaved, timed_ratio
from benchmarks.row import Budget


def work(size):
    return sum(range(size))


def test_sides_take_turns_and_the_first_round_is_left_out():
    calls = []
    times = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert len(times) == 3
    assert calls == ["b", "a", "a", "b", "b", "a", "a", "b"]


def test_the_ratio_of_twice_the_work_is_about_two():
    found = timed_ratio(
        {"reference": lambda: work(60_000), "ours": lambda: work(30_000)},
        Budget(rounds=9),
        calls=5,
        gate="equal sums",
        about={"size": 30_000},
    )
    assert len(found.per_round) == 9
    assert min(found.per_round) <= found.value <= max(found.per_round)
    assert 1.2 < found.value < 3.5
    assert found.seconds["reference"] > found.seconds["ours"] > 0


def test_a_side_is_named_by_what_is_divided():
    sides = {"slow": lambda: work(50_000), "fast": lambda: work(5_000)}
    found = timed_ratio(sides, Budget(rounds=3), over="fast", under="slow", calls=3, gate="", about={})
    assert found.value < 1
    assert found.action is sides["slow"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_events_time_a_gpu():
    x = torch.ones(1000, 1000, device="cuda")
    assert interleaved({"a": lambda: x @ x}, rounds=2, cuda=True)[0]["a"] > 0
