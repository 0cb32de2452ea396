"""One cell is one real process: it ends, fails, is killed, orphaned or stopped, and says so."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from transformer_dropout.compare.cell_process import CellRunner, why
from transformer_dropout.compare.cells import Cell
from transformer_dropout.compare.progress import PROGRESS_FILE
from transformer_dropout.runs.record import read_metrics, read_run
from transformer_dropout.runs.run import run


@pytest.fixture
def cell(tmp_path, tiny):
    def make(**training):
        return Cell(config=tiny(**training), folder=tmp_path / "run")

    return make


def told(texts):
    """Return the events behind the texts of a progress file."""
    return [json.loads(text) for text in texts]


def test_a_cell_runs_in_its_folder_and_leaves_its_progress_there(cell):
    texts = []
    one = cell()
    outcome = CellRunner(on_progress=texts.append)(one)
    assert (outcome.status, outcome.reason) == ("finished", "")
    assert one.finished
    latest = told(texts)[-1]["latest"]
    assert (latest["step"], latest["steps"]) == (20, 20)
    assert (one.folder / PROGRESS_FILE).read_text() == texts[-1]
    assert not list(one.folder.parent.glob(".*.lock"))
    # The same run in this process gives the same numbers.
    run(one.config, one.folder.with_name("here"))
    losses = [
        [row["val_loss"] for row in read_metrics(folder / "metrics.jsonl")]
        for folder in (one.folder, one.folder.with_name("here"))
    ]
    assert losses[0] == losses[1]


def test_a_finished_cell_starts_no_process(cell):
    one = cell()
    run(one.config, one.folder)
    before = {path: path.stat().st_mtime_ns for path in one.folder.rglob("*")}
    assert CellRunner()(one).status == "finished"
    assert {path: path.stat().st_mtime_ns for path in one.folder.rglob("*")} == before


def test_a_cell_that_fails_says_why_and_where_the_rest_is(cell):
    one = cell(lr=1e30)
    outcome = CellRunner()(one)
    assert outcome.status == "failed"
    assert outcome.reason.startswith("The loss was not finite at step 2;")
    assert outcome.reason.endswith(f"({one.folder / 'log.txt'})")


def test_a_cell_whose_process_is_killed_is_a_failed_one_and_the_next_call_continues_it(cell):
    one = cell(steps=200, eval_every=10)

    def kill(text):
        # The first evaluation has left a checkpoint when a step is told.
        for process in runner._running:
            process.kill()

    runner = CellRunner(on_progress=kill)
    outcome = runner(one)
    assert outcome.status == "failed"
    assert "killed by signal 9" in outcome.reason
    texts = []
    assert CellRunner(on_progress=texts.append)(one).status == "finished"
    assert any(text.startswith("Continuing from step") for text in told(texts)[-1]["messages"])


def test_a_request_to_stop_reaches_the_process_and_no_other_is_started(cell):
    one = cell(steps=1000, eval_every=1000)
    runner = CellRunner(on_progress=lambda text: runner.stop(signal.SIGTERM))
    assert runner(one).status == "stopped"
    assert read_run(one.folder)["status"] == "interrupted"
    other = Cell(config=one.config, folder=one.folder.with_name("other"))
    assert runner(other).status == "stopped"
    assert not other.folder.exists()


def test_a_cell_waits_while_another_process_is_in_its_folder(cell):
    one = cell()
    one.folder.parent.mkdir(exist_ok=True)
    texts, outcomes = [], []
    runner = CellRunner(on_progress=texts.append)
    with FileLock(one.folder.with_name(".run.lock")):
        thread = threading.Thread(target=lambda: outcomes.append(runner(one)))
        thread.start()
        time.sleep(0.5)
        assert not texts and not outcomes
    thread.join(60)
    assert outcomes[0].status == "finished"


def test_a_cell_that_waits_can_be_stopped(cell):
    one = cell()
    runner, outcomes = CellRunner(), []
    with FileLock(one.folder.with_name(".run.lock")):
        thread = threading.Thread(target=lambda: outcomes.append(runner(one)))
        thread.start()
        runner.stop(signal.SIGTERM)
        thread.join(10)
    assert outcomes[0].status == "stopped"


PARENT = """
import pickle, sys
from transformer_dropout.compare.cell_process import CellRunner
cell = pickle.load(open(sys.argv[1], "rb"))
runner = CellRunner(on_progress=lambda text: print(next(iter(runner._running)).pid, flush=True))
runner(cell)
"""


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="tells whether a process lives from /proc")
def test_an_orphaned_child_ends_within_a_second_and_its_run_goes_on_elsewhere(cell, tmp_path, environment):
    one = cell(steps=1500, eval_every=100)
    (tmp_path / "cell.pickle").write_bytes(pickle.dumps(one))
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "cell.pickle")],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    child = int(parent.stdout.readline())
    while not list(one.folder.glob("checkpoints/step-*[1-9]*")):
        assert parent.poll() is None
        time.sleep(0.02)
    assert alive(child)
    os.kill(parent.pid, signal.SIGKILL)
    killed = time.monotonic()
    while alive(child):
        assert time.monotonic() - killed < 1.0
        time.sleep(0.02)
    parent.communicate()
    texts = []
    assert CellRunner(on_progress=texts.append)(one).status == "finished"
    assert any(text.startswith("Continuing from step") for text in told(texts)[-1]["messages"])


@pytest.mark.parametrize(
    ("log", "code", "reason"),
    [
        ("first\nlast words\n", 1, "last words ({log})"),
        ("", 7, "exit code 7; see {log}"),
        ("anything", -11, "killed by signal 11; see {log}"),
    ],
)
def test_the_reason_is_the_last_line_of_the_log(tmp_path, log, code, reason):
    path = tmp_path / "log.txt"
    path.write_text(log)
    assert why(path, code) == reason.format(log=path)


def test_a_log_in_no_encoding_is_read_all_the_same(tmp_path):
    log = tmp_path / "log.txt"
    log.write_bytes("first\nsaid é ".encode() + b"\xff\n\n")
    assert why(log, 1) == f"said é \ufffd ({log})"
