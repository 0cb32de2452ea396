"""What the engine asks of a Dask cluster and does with its answers, without one."""

import signal
import socket
import threading
from types import SimpleNamespace

import pytest

from transformer_dropout.compare.cells import Cell, Outcome
from transformer_dropout.compare.engines import Resources, dask
from transformer_dropout.compare.engines.dask import Dask, WorkerCell, stop_when_cancelled
from transformer_dropout.compare.engines.folders import own_folder
from transformer_dropout.compare.progress import PROGRESS_FILE
from transformer_dropout.runs.trial_config import TrialConfig

distributed = pytest.importorskip("distributed")


class Future:
    """A job that has ended, with an answer or an error; or one that has not."""

    def __init__(self, answer=None, error=None, ended=True):
        self.answer, self.error, self.ended = answer, error, ended

    def done(self):
        return self.ended

    def exception(self):
        return self.error

    def result(self):
        return self.answer


class Client:
    """A client that notes what it is asked for."""

    def __init__(self, **asked):
        self.asked, self.status, self.given, self.cancelled, self.topics = asked, "running", [], None, []
        self.futures = []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.status = "closed"

    def subscribe_topic(self, topic, listener):
        self.topics.append((topic, listener))

    def submit(self, work, cell, *, pure, key):
        self.given.append((work, cell, pure, key))
        return self.futures[len(self.given) - 1]

    def cancel(self, futures):
        self.cancelled = futures


@pytest.fixture
def engine(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "Client", Client)
    return Dask("tcp://head:8786", tmp_path, Resources(threads=3, gpus=2))


def cell(tmp_path, name="a", seed=0):
    return Cell(config=TrialConfig(name=name, seed=seed), folder=tmp_path / "runs" / name)


def test_a_scheduler_is_known_by_its_address_or_its_file(engine, tmp_path):
    words = {"timeout": dask.CONNECT_SECONDS, "set_as_default": False}
    assert engine.client.asked == {"address": "tcp://head:8786", **words}
    assert Dask("a/s.json", tmp_path, Resources()).client.asked == {"scheduler_file": "a/s.json", **words}
    assert engine.jobs is None and engine.stopping is False


def test_every_cell_is_a_job_under_a_key_of_its_own(engine, tmp_path):
    cells = [cell(tmp_path, "a", 3), cell(tmp_path, "b", 4)]
    lost = Future(error=RuntimeError("the worker\n died"))
    client = engine.client
    client.futures = [Future((Outcome(cell=cells[1], status="finished"), {})), lost]
    first, second = engine.run(cells)
    assert first == Outcome(cell=cells[0], status="finished")
    assert second == Outcome(cell=cells[1], status="failed", reason="RuntimeError: the worker died")
    assert client.cancelled == [] and client.status == "closed"
    ((topic, listener),) = client.topics
    assert listener == engine._write_progress
    for (work, given, pure, key), one, start in zip(client.given, cells, ("a-3-", "b-4-"), strict=True):
        assert (given, pure) == (one, False) and key.startswith(start) and len(key) == 4 + 36
        assert (work.topic, work.root, work.resources) == (topic, tmp_path, engine.resources)
        assert work.directory.is_dir() and work.id == ""
    keys = {key for *_, key in client.given}
    # An engine is asked again after it has closed its client.
    engine.client.futures = []
    again = engine.connected()
    again.futures = [Future((Outcome(cell=cells[0], status="finished"), {}))]
    engine.connected = lambda: again
    assert len(list(engine.run(cells[:1]))) == 1 and engine.client is again
    assert not keys & {key for *_, key in again.given}


def test_what_is_stopped_is_cancelled(engine, tmp_path, monkeypatch):
    cells = [cell(tmp_path, "a"), cell(tmp_path, "b")]
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        engine.stop(signal.SIGTERM)

    monkeypatch.setattr(dask.time, "sleep", sleep)
    engine.client.futures = [Future(ended=False), Future(ended=False)]
    assert list(engine.run(cells)) == [Outcome(cell=one, status="stopped") for one in cells]
    assert engine.client.cancelled == engine.client.futures and waited == [dask.POLL_SECONDS]


def test_files_that_came_back_are_written_the_record_last(engine, tmp_path, monkeypatch):
    one, other = cell(tmp_path), cell(tmp_path, "elsewhere")
    files = {"run.json": b"{}", "log.txt": b"said", "other": b"x"}
    found = engine._outcome(one, Future((Outcome(cell=other, status="failed", reason="why"), files)))
    assert found == Outcome(cell=one, status="failed", reason="why")
    assert {path.name: path.read_bytes() for path in one.folder.iterdir()} == {
        "run.json": b"{}",
        "log.txt": b"said",
    }
    engine._outcome(one, Future((Outcome(cell=other, status="finished"), files)))
    for _ in range(2):
        engine._write_progress((0.0, {"folder": "runs/b", "text": "so far"}))
    assert (tmp_path / "runs" / "b" / PROGRESS_FILE).read_text() == "so far"


class Runner:
    """Runs nothing: says how a cell ended, and leaves a file."""

    made = None

    def __init__(self, **words):
        Runner.made, self.stopped = self, threading.Event()
        self.words, self.number = words, None

    def __call__(self, cell):
        cell.folder.mkdir(parents=True)
        (cell.folder / "log.txt").write_text("said")
        if self.words["on_progress"]:
            self.words["on_progress"]("so far")
        return Outcome(cell=cell, status="failed", reason="why")

    def stop(self, number):
        self.number = number


@pytest.mark.parametrize("shared", [True, False])
def test_a_worker_runs_in_the_folder_or_in_one_of_its_own(tmp_path, monkeypatch, shared):
    said = []
    worker = SimpleNamespace(
        log_event=lambda *given: said.append(given),
        get_current_task=lambda: "task",
        state=SimpleNamespace(tasks={}),
    )
    monkeypatch.setattr(distributed, "get_worker", lambda: worker)
    monkeypatch.setattr(dask, "CellRunner", Runner)
    monkeypatch.setattr(dask, "folder_id", lambda folder: "id" if shared and folder == tmp_path else "")
    resources = Resources(threads=3, gpus=2)
    work = WorkerCell(topic="topic", root=tmp_path, id="id", directory=tmp_path, resources=resources)
    one = cell(tmp_path)
    outcome, files = work(one)
    words = Runner.made.words
    assert (words["threads"], words["gpus"], words["folder"]) == (3, 2, tmp_path)
    if shared:
        assert (outcome.cell, outcome.reason, files, said) == (one, "why", {}, [])
        return
    assert outcome.cell.folder == own_folder("id") / "runs" / "a"
    assert outcome.reason == f"why on {socket.gethostname()}" and files == {"log.txt": b"said"}
    assert said == [("topic", {"folder": "runs/a", "text": "so far"})]


@pytest.mark.parametrize(("task", "number"), [(None, 15), ("cancelled", 15), ("executing", None)])
def test_a_run_that_nobody_waits_for_is_stopped(monkeypatch, task, number):
    monkeypatch.setattr(dask, "POLL_SECONDS", 0.01)
    tasks = {} if task is None else {"key": SimpleNamespace(state=task)}
    runner, ended = Runner(), threading.Event()
    if task == "executing":
        threading.Timer(0.1, ended.set).start()
    stop_when_cancelled(runner, SimpleNamespace(state=SimpleNamespace(tasks=tasks)), "key", ended)
    assert runner.number == number
