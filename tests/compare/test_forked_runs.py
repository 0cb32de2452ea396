"""Runs that are forks of one process are what runs started anew are, and end as those do."""

import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from transformer_dropout.compare import forked_runs
from transformer_dropout.compare.cell_process import CellRunner
from transformer_dropout.compare.cells import TRAINING, Cell
from transformer_dropout.compare.forked_runs import ForkServer, can_fork
from transformer_dropout.runs import fork_server
from transformer_dropout.runs.record import read_metrics, read_run
from transformer_dropout.runs.run import run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks runs")


@pytest.fixture(scope="module")
def server():
    return ForkServer(threads=1)


@pytest.fixture
def cell(tmp_path, tiny):
    def make(**training):
        return Cell(config=tiny(**training), folder=tmp_path / "run")

    return make


def losses(folder):
    return [row["val_loss"] for row in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.slow
def test_two_forks_train_as_processes_of_their_own_do(cell, server, tmp_path):
    first = cell()
    second = replace(first, config=replace(first.config, seed=1), folder=tmp_path / "second")
    runner = CellRunner(forks=server)
    for one in (first, second):
        assert runner(one).status == "finished"
        run(one.config, one.folder.with_name("here"))
        assert losses(one.folder) == losses(one.folder.with_name("here"))
        (one.folder.with_name("here")).rename(one.folder.with_name(f"here-{one.config.seed}"))
    assert server.works and not runner._running
    assert (first.folder / "log.txt").read_text() == ""


@pytest.mark.slow
def test_a_fork_that_fails_or_is_killed_says_so_and_the_next_goes_on(cell, server, tmp_path):
    diverges = replace(cell(lr=1e30), folder=tmp_path / "diverges")
    outcome = CellRunner(forks=server)(diverges)
    assert outcome.reason.startswith("The loss was not finite at step 2;")
    one = cell(steps=200, eval_every=10)
    killed = CellRunner(
        forks=server, on_progress=lambda text: [process.kill() for process in killed._running]
    )
    assert "killed by signal 9" in killed(one).reason
    texts = []
    assert CellRunner(forks=server, on_progress=texts.append)(one).status == "finished"
    assert "Continuing from step" in texts[-1]


@pytest.mark.slow
def test_a_request_to_stop_reaches_the_fork(cell, server):
    one = cell(steps=1000, eval_every=1000)
    runner = CellRunner(forks=server, on_progress=lambda text: runner.stop_and_wait())
    assert runner(one).status == "stopped"
    assert read_run(one.folder)["status"] == "interrupted"


@pytest.mark.slow
def test_where_no_fork_is_to_be_had_the_run_is_started_anew(cell, monkeypatch):
    server = ForkServer(threads=1)
    monkeypatch.setattr(forked_runs, "SERVER", "transformer_dropout.no_module")
    assert CellRunner(forks=server)(cell()).status == "finished"
    assert not server.works


def test_a_training_of_the_users_own_is_no_fork(tmp_path, monkeypatch):
    # Its code may be anything, threads that no fork survives included.
    server, started = ForkServer(threads=1), []
    monkeypatch.setattr(server, "start", lambda *asked: started.append(asked))
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: command)
    runner, log = CellRunner(forks=server), (tmp_path / "log").open("w")
    for module in (TRAINING, "transformer_dropout.runs.trials"):
        runner._started(Cell(config=None, folder=tmp_path, module=module), {}, log)
    log.close()
    assert len(started) == 1


def test_no_run_on_a_gpu_is_a_fork(monkeypatch):
    assert can_fork(None) and can_fork(0)
    monkeypatch.setattr(forked_runs, "visible_gpus", lambda: ["0"])
    assert not can_fork(None) and not can_fork(1) and can_fork(0)


PARENT = """
import pickle, sys
from transformer_dropout.compare import forked_runs
from transformer_dropout.compare.cell_process import CellRunner
from transformer_dropout.compare.forked_runs import ForkServer
cell = pickle.load(open(sys.argv[1], "rb"))
runner = CellRunner(
    forks=ForkServer(1), on_progress=lambda text: print(next(iter(runner._running)).pid, flush=True)
)
runner(cell)
"""


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
    except OSError:
        return False


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[1])


@pytest.mark.slow
def test_a_fork_whose_asker_is_killed_ends_and_so_does_what_forked_it(cell, tmp_path, environment):
    one = cell(steps=5000, eval_every=100)
    (tmp_path / "cell.pickle").write_bytes(pickle.dumps(one))
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "cell.pickle")],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    child = int(parent.stdout.readline())
    watcher = parent_of(child)
    pids = [child, watcher, parent_of(watcher)]
    assert all(map(alive, pids)) and parent.pid not in pids
    os.kill(parent.pid, signal.SIGKILL)
    killed = time.monotonic()
    while any(map(alive, pids)):
        assert time.monotonic() - killed < 5.0
        time.sleep(0.02)
    parent.communicate()


@pytest.mark.slow
def test_the_process_that_forks_ends_with_its_server(cell):
    server = ForkServer(threads=1)
    pids = []
    runner = CellRunner(
        forks=server,
        on_progress=lambda text: pids.extend(parent_of(parent_of(one.pid)) for one in runner._running),
    )
    assert runner(cell()).status == "finished"
    assert alive(pids[0])
    server = runner = None
    gc.collect()
    assert not alive(pids[0])


# What the process that forks is, with nothing imported, and a run that does as it is told.
STUB = """
import importlib.util, json, os, sys
spec = importlib.util.spec_from_file_location("fork_server", {file!r})
fork_server = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fork_server)
threads = os.environ["OMP_NUM_THREADS"]
print("a word of an import", flush=True)
print("and another", file=sys.stderr, flush=True)
fork_server.serve()
print(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd(), threads]), flush=True)
print("said", file=sys.stderr, flush=True)
sys.exit(int(sys.stdin.readline()))
"""


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """A server that has imported nothing, and how it starts a run in a folder."""
    (tmp_path / "quick_server.py").write_text(STUB.format(file=fork_server.__file__))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(forked_runs, "SERVER", "quick_server")
    server = ForkServer(threads=3)
    with (tmp_path / "log").open("w") as log:
        yield server, lambda: server.start(["a", "--b"], log, {"ONE": "1"}, tmp_path)


def close(run):
    run.stdin.close()
    run.stdout.close()


def test_a_forked_run_is_waited_for_as_a_process_is(quick, tmp_path, capfd):
    server, start = quick
    for code in (0, 7):
        run = start()
        assert json.loads(run.stdout.readline()) == [["a", "--b"], {"ONE": "1"}, str(tmp_path), "3"]
        assert os.getsid(run.pid) == run.pid and run.returncode is None
        with pytest.raises(subprocess.TimeoutExpired):
            run.wait(0.05)
        run.stdin.write(f"{code}\n")
        run.stdin.flush()
        assert run.wait(20) == run.wait() == run.returncode == code
        run.kill()
        close(run)
    assert server.works and (tmp_path / "log").read_text() == "said\nsaid\n"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_forked_run_ends_by_a_signal(quick, number):
    _, start = quick
    run = start()
    run.kill() if number == signal.SIGKILL else run.send_signal(number)
    assert run.wait(20) == -number
    close(run)


def test_where_the_server_does_not_start_no_other_is_tried(quick, monkeypatch):
    server, start = quick
    monkeypatch.setattr(forked_runs, "SERVER", "no_such_module")
    assert start() is None and not server.works
    monkeypatch.setattr(server, "connect", pytest.fail)
    assert start() is None


def test_a_server_ends_with_who_asked_for_it(quick, monkeypatch):
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *given, **words: started.append(popen(*given, **words)) or started[0]
    )
    server = ForkServer(threads=1)
    server.connect()
    assert started[0].poll() is None
    del server
    gc.collect()
    assert started[0].returncode == 0
