"""A Ray cluster: real workers where Ray is installed, and what is said where it is not."""

import sys
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
