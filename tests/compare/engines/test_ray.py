"""A Ray cluster: real workers where Ray is installed, and what is said where it is not."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from transformer_dropout.compare.cells import make_cells
from transformer_dropout.compare.comparison import opened_comparison, run_cells
from transformer_dropout.compare.engines import Resources, choose_engine
from transformer_dropout.errors import InputError


def test_a_machine_without_ray_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="needs Ray, which is no part of this package; run: pip install ray"):
        choose_engine("ray", tmp_path / "out")


class Jobs:
    """What the engine asks of Ray, computed here: a job that ends, and one whose worker is lost."""

    class exceptions:
        class RayError(Exception):
            """As Ray's."""

    def __init__(self):
        self.asked, self.given, self.shut = {}, {}, False

    def is_initialized(self):
        return True

    def cluster_resources(self):
        return {"CPU": 2.0, "GPU": 1.0}

    def remote(self, **asked):
        self.asked = asked
        return lambda function: SimpleNamespace(remote=lambda *arguments: self.give(function, arguments))

    def give(self, function, arguments):
        number = len(self.given)
        self.given[number] = (function, arguments)
        return number

    def wait(self, jobs, timeout):
        return jobs[:1], jobs[1:]

    def get(self, job):
        function, arguments = self.given[job]
        if arguments[0].config.name == "lost":
            raise self.exceptions.RayError("The worker died")
        return function(*arguments)

    def shutdown(self):
        self.shut = True


def test_cells_become_jobs_and_a_lost_worker_is_a_failed_run(tmp_path, tiny, monkeypatch):
    jobs = Jobs()
    monkeypatch.setitem(sys.modules, "ray", jobs)
    out, arms = tmp_path / "out", [tiny("a"), tiny("lost")]
    cells = make_cells(arms, [0], out)
    with opened_comparison(out, arms, [0], {"command": "dropout compare", "reference": None}):
        outcomes = list(choose_engine("ray", out, Resources(jobs=1, threads=2)).run(cells))
    assert [outcome.status for outcome in outcomes] == ["finished", "failed"]
    assert outcomes[1].reason == "RayError: The worker died"
    assert jobs.asked == {"num_cpus": 2, "num_gpus": 1}
    assert jobs.shut


@pytest.mark.slow
def test_real_workers_of_ray_finish_runs(tmp_path, tiny):
    pytest.importorskip("ray")
    out, arms = tmp_path / "out", [tiny("a"), tiny("diverges", lr=1e30)]
    cells = make_cells(arms, [0], out)
    with opened_comparison(out, arms, [0], {"command": "dropout compare", "reference": None}):
        engine = choose_engine("ray", out, Resources(jobs=2))
        outcomes = run_cells(cells, engine, on_event=lambda *_: None, on_outcome=lambda _: None)
    by_name = {outcome.cell.config.name: outcome for outcome in outcomes}
    assert by_name["a"].status == "finished", by_name["a"].reason
    assert "not finite at step 2" in by_name["diverges"].reason


def test_ray_is_joined_once_and_asked_for_what_a_run_takes(tmp_path, tiny, monkeypatch):
    jobs, joined = Jobs(), []
    jobs.is_initialized = lambda: bool(joined)
    jobs.init = lambda **words: joined.append(words)
    monkeypatch.setitem(sys.modules, "ray", jobs)
    engine = choose_engine("ray:head:10001", tmp_path, Resources(gpus=0))
    assert joined == [{"address": "head:10001", "log_to_driver": False, "logging_level": "ERROR"}]
    engine.connect()
    assert len(joined) == 1 and engine.gpus == 0 and engine.jobs is None
    jobs.cluster_resources = lambda: {"CPU": 2.0}
    engine = choose_engine("ray", tmp_path, Resources())
    assert engine.gpus == 0 and engine.address is None

    def refuse(**words):
        raise ConnectionError("nobody\nthere")

    joined.clear()
    jobs.init = refuse
    with pytest.raises(InputError, match=r"ray:x: no Ray cluster answers there \(nobody\); start"):
        choose_engine("ray:x", tmp_path)


def test_as_many_jobs_run_at_once_as_were_asked_for_and_a_stop_leaves_the_rest(tmp_path, tiny, monkeypatch):
    jobs, most = Jobs(), []
    monkeypatch.setitem(sys.modules, "ray", jobs)
    cells = make_cells([tiny("a"), tiny("b"), tiny("c")], [0], tmp_path)
    engine = choose_engine("ray", tmp_path, Resources(jobs=2, threads=3))
    jobs.get = lambda job: jobs.given[job][1]

    def wait(running, timeout):
        most.append((len(running), timeout))
        return running[-1:], running[:-1]

    jobs.wait = wait
    found = list(engine.run(cells))
    assert [given[0] for given in found] == [cells[1], cells[2], cells[0]] and most == [
        (2, 1.0),
        (2, 1.0),
        (1, 1.0),
    ]
    assert all(given[1:] == (3, Path.cwd()) for given in found)
    engine.stop(15)
    assert [(one.cell, one.status) for one in engine.run(cells)] == [(cell, "stopped") for cell in cells]


def test_a_lost_worker_whose_run_is_finished_is_no_failure(tmp_path, tiny, monkeypatch):
    jobs = Jobs()
    monkeypatch.setitem(sys.modules, "ray", jobs)
    engine = choose_engine("ray", tmp_path)
    jobs.get = lambda job: (_ for _ in ()).throw(jobs.exceptions.RayError("gone"))
    found = engine.outcome(SimpleNamespace(finished=True), 0)
    assert found.status == "finished" and found.cell.finished
