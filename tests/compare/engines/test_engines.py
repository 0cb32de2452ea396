"""Which engine a text names, and what none is."""

import importlib

import pytest

from transformer_dropout.compare.engines import Resources, choose_engine
from transformer_dropout.compare.engines.local import Local, default_jobs
from transformer_dropout.errors import InputError


@pytest.mark.parametrize(
    ("on", "jobs", "expected"), [("local:3", None, 3), (None, 2, 2), ("local", 2, 2), ("local:2", 2, 2)]
)
def test_a_number_of_runs_at_once(tmp_path, on, jobs, expected):
    engine = choose_engine(on, tmp_path, Resources(jobs=jobs))
    assert isinstance(engine, Local)
    assert engine.jobs == expected


@pytest.mark.parametrize(
    ("on", "words"),
    [
        ("locl:2", r"names no engine; write local:N, dask:ADDRESS, slurm:PARTITION or ray"),
        ("dask", "names no engine"),
        ("slurm:", "names no engine"),
        ("local:0", "'0' is no number of runs at once"),
        ("local:-1", "is no number"),
        ("local:²", "is no number"),
        ("local:3", "say different numbers"),
        ("dask:tcp://head:8786", "--jobs does not go with --on dask"),
    ],
)
def test_what_names_no_engine_is_refused(tmp_path, on, words):
    with pytest.raises(InputError, match=words):
        choose_engine(on, tmp_path / "out", Resources(jobs=2))
    assert not (tmp_path / "out").exists()


def test_a_machine_with_gpus_takes_as_many_runs_as_these_serve(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,5")
    assert [default_jobs(gpus) for gpus in (None, 1, 2, 3)] == [4, 4, 2, 1]
    cores = default_jobs(0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert default_jobs(None) == cores


@pytest.mark.parametrize(
    ("on", "kind", "given"),
    [
        ("ray", "ray.Ray", (None,)),
        ("ray:head:10001", "ray.Ray", ("head:10001",)),
        ("dask:tcp://head:8786", "dask.Dask", ("tcp://head:8786", "folder")),
        ("slurm:gpu,mem_gb=16", "slurm.Slurm", ("gpu,mem_gb=16", "folder")),
    ],
)
def test_a_text_names_an_engine_and_where_it_is(monkeypatch, on, kind, given):
    module, name = kind.split(".")
    place = importlib.import_module(f"transformer_dropout.compare.engines.{module}")
    monkeypatch.setattr(place, name, lambda *words: (kind, *words))
    resources = Resources(threads=3)
    assert choose_engine(on, "folder", resources) == (kind, *given, resources)
