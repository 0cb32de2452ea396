"""Runs on a Dask cluster of real processes, one of which dies, and on one that does not see the folder."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from transformer_dropout.compare.cells import make_cells
from transformer_dropout.compare.comparison import opened_comparison, run_cells
from transformer_dropout.compare.engines import Resources, choose_engine, dask
from transformer_dropout.errors import InputError
from transformer_dropout.runs.record import read_metrics, read_run
from transformer_dropout.runs.run import run

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.filterwarnings("ignore")
ABOUT = {"command": "dropout compare", "reference": None}
QUIET = ("--no-dashboard",)


def start(program, folder, environment, *words):
    """Start one of Dask's programs in a folder of its own."""
    folder.mkdir()
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-m", f"distributed.cli.{program}", *QUIET, *map(str, words)]
        return subprocess.Popen(command, cwd=folder, env=environment, stderr=log, stdout=log)


@pytest.fixture
def cluster(tmp_path, environment):
    """A scheduler and two workers, as somebody starts them on two machines."""
    file = tmp_path / "scheduler.json"
    processes = [
        start("dask_scheduler", tmp_path / "scheduler", environment, "--port", "0", "--scheduler-file", file)
    ]
    for name in ("one", "two"):
        words = ("--scheduler-file", file, "--nthreads", 1, "--no-nanny", "--name", name)
        processes.append(start("dask_worker", tmp_path / name, environment, *words))
    yield file, dict(zip(("one", "two"), processes[1:], strict=True))
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_the_run_of_a_killed_worker_is_taken_up_by_the_other(cluster, tmp_path, tiny, learned):
    file, workers = cluster
    out = tmp_path / "out"
    arms = [
        tiny(name, recipe=learned, steps=480, eval_every=10, lr=lr) for name, lr in (("a", 1e-2), ("b", 2e-2))
    ]
    cells = make_cells(arms, [0], out)
    told, messages = set(), []

    def kill_when_both_have_begun():
        # Whichever run the killed worker has, it is to have something to go on from.
        while not all(list(cell.folder.glob("checkpoints/step-*[1-9]*")) for cell in cells):
            time.sleep(0.02)
        workers["one"].send_signal(signal.SIGKILL)

    def on_event(cell, event):
        told.add(cell.name)
        messages.append(event.get("message"))

    threading.Thread(target=kill_when_both_have_begun, daemon=True).start()
    with opened_comparison(out, arms, [0], ABOUT):
        engine = choose_engine(f"dask:{file}", out)
        outcomes = run_cells(cells, engine, on_event=on_event, on_outcome=lambda outcome: None)
    assert workers["one"].wait() == -signal.SIGKILL
    assert [outcome.status for outcome in outcomes] == ["finished", "finished"], outcomes
    assert told == {"a, seed 0", "b, seed 0"}
    assert any(message and message.startswith("Continuing from step") for message in messages)
    for cell in cells:
        run(cell.config, tmp_path / cell.config.name)
        ours, theirs = (
            read_metrics(place / "metrics.jsonl") for place in (cell.folder, tmp_path / cell.config.name)
        )
        assert [row["val_loss"] for row in ours] == [row["val_loss"] for row in theirs]


@pytest.fixture
def one_worker():
    """A cluster in this process."""
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        yield cluster.scheduler_address


def test_small_files_travel_back_where_the_folder_is_not_seen(one_worker, tmp_path, tiny, monkeypatch):
    out = tmp_path / "out"
    arms = [tiny("a"), tiny("diverges", lr=1e30)]
    cells = make_cells(arms, [0], out)
    events = []
    with opened_comparison(out, arms, [0], ABOUT):
        engine = choose_engine(f"dask:{one_worker}", out)
        # The asking machine reads the id, the worker's sees nothing.
        answers = iter([dask.folder_id(out)])
        monkeypatch.setattr(dask, "folder_id", lambda folder: next(answers, ""))
        outcomes = run_cells(
            cells, engine, on_event=lambda *event: events.append(event), on_outcome=lambda outcome: None
        )
    by_name = {outcome.cell.config.name: outcome for outcome in outcomes}
    assert by_name["a"].status == "finished"
    assert "not finite at step 2" in by_name["diverges"].reason
    assert cells[0].finished
    assert sorted(path.name for path in cells[0].folder.iterdir()) == [
        "config.yaml",
        "log.txt",
        "metrics.jsonl",
        "run.json",
    ]
    assert read_run(cells[1].folder)["status"] == "diverged"
    assert len(read_metrics(cells[0].folder / "metrics.jsonl")) == 3
    assert any(event.get("step") == 20 for cell, event in events if cell is cells[0])


def test_a_stopped_comparison_stops_its_runs_on_the_workers(one_worker, tmp_path, tiny):
    out = tmp_path / "out"
    arms = [tiny("a", steps=20_000, eval_every=20_000), tiny("b", steps=20_000)]
    cells = make_cells(arms, [0], out)
    with opened_comparison(out, arms, [0], ABOUT):
        engine = choose_engine(f"dask:{one_worker}", out)
        outcomes = run_cells(
            cells,
            engine,
            on_event=lambda cell, event: engine.stop(signal.SIGTERM),
            on_outcome=lambda outcome: None,
        )
    assert [outcome.status for outcome in outcomes] == ["stopped", "stopped"]
    started = time.monotonic()
    while read_run(cells[0].folder)["status"] != "interrupted":
        assert time.monotonic() - started < 60
        time.sleep(0.05)
    assert not cells[1].folder.exists()


def test_a_scheduler_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(dask, "CONNECT_SECONDS", 0.5)
    with pytest.raises(InputError, match=r"no Dask scheduler answers there .*start one with: dask scheduler"):
        choose_engine("dask:tcp://127.0.0.1:9", tmp_path / "out", Resources())
    assert not (tmp_path / "out").exists()
