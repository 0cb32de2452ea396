"""Ray's backend of joblib, by a stand-in: Ray itself is the user's to install."""

import sys
from types import ModuleType

import joblib
import pytest
from joblib._parallel_backends import ThreadingBackend

from transformer_dropout.compare.cells import make_cells
from transformer_dropout.compare.comparison import opened_comparison, run_cells
from transformer_dropout.compare.engines import Resources, choose_engine
from transformer_dropout.errors import InputError


def test_without_ray_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"--on ray needs Ray.*pip install ray"):
        choose_engine("ray", tmp_path)


def test_runs_go_through_the_backend_that_ray_registers(tmp_path, tiny, monkeypatch):
    used = []

    class Backend(ThreadingBackend):
        """Stands for the one that Ray brings."""

        def configure(self, *args, **kwargs):
            used.append(self)
            return super().configure(*args, **kwargs)

    ray, util, glue = ModuleType("ray"), ModuleType("ray.util"), ModuleType("ray.util.joblib")
    ray.is_initialized = lambda: True
    glue.register_ray = lambda: joblib.register_parallel_backend("ray", Backend)
    for module in (ray, util, glue):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    arms = [tiny("a"), tiny("diverges", lr=1e30)]
    cells = make_cells(arms, [0], tmp_path / "out")
    with opened_comparison(tmp_path / "out", arms, [0], {"command": "", "reference": None}):
        engine = choose_engine("ray", tmp_path / "out", Resources(jobs=2))
        outcomes = run_cells(cells, engine, on_event=lambda *event: None, on_outcome=lambda outcome: None)
    assert used
    assert {outcome.cell.config.name: outcome.status for outcome in outcomes} == {
        "a": "finished",
        "diverges": "failed",
    }
