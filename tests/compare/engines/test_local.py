"""Runs as processes of this machine: so many at once, the first to end first, and stopped together."""

import threading

from transformer_dropout.compare.engines import Resources, local
from transformer_dropout.compare.engines.local import Local


class Runner:
    """Runs no process: a cell waits for another to end, or for nobody."""

    def __init__(self, threads, gpus, forks):
        self.given, self.stopped = (threads, gpus, forks), None
        self.ended = {name: threading.Event() for name in "ab"}

    def __call__(self, cell):
        name, other = cell
        if other:
            assert self.ended[other].wait(20)
        self.ended[name].set()
        return name

    def stop(self, number):
        self.stopped = number


def test_cells_run_at_once_and_are_told_of_as_they_end(monkeypatch):
    monkeypatch.setattr(local, "CellRunner", Runner)
    monkeypatch.setattr(local, "ForkServer", lambda threads: f"forks of {threads}")
    monkeypatch.setattr(local, "can_fork", lambda gpus: gpus == 1)
    engine = Local(2, Resources(threads=3, gpus=1))
    assert (engine.jobs, engine.runner.given) == (2, (3, 1, "forks of 3"))
    assert Local(2, Resources()).runner.given == (1, None, None)
    assert list(engine.run([("a", "b"), ("b", None)])) == ["b", "a"]
    engine.stop(15)
    assert engine.runner.stopped == 15


def test_without_a_number_there_are_as_many_as_cores_or_gpus(monkeypatch):
    monkeypatch.setattr(local, "visible_gpus", lambda: ["0", "1", "2"])
    monkeypatch.setattr(local.os, "cpu_count", lambda: 7)
    assert [Local(None, Resources(gpus=gpus)).jobs for gpus in (None, 0, 1, 2)] == [3, 7, 3, 1]
    monkeypatch.setattr(local, "visible_gpus", list)
    assert Local(None, Resources(gpus=2)).jobs == 7
    monkeypatch.setattr(local.os, "cpu_count", lambda: None)
    assert Local(None, Resources()).jobs == 1
