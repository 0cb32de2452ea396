"""What a cell's process is given and how its end is read, with a run that imports nothing."""

import json
import os
import signal
from contextlib import contextmanager

import pytest

from transformer_dropout.compare import cell_process
from transformer_dropout.compare.cell_process import CellRunner
from transformer_dropout.compare.cells import Cell
from transformer_dropout.runs.trial_config import TrialConfig

RUN = """
import json, os, sys
from pathlib import Path
folder, mode = Path(sys.argv[1]), os.environ["MODE"]
told = {"words": sys.argv[2:], "threads": os.environ["OMP_NUM_THREADS"], "gpus": os.environ.get("GPUS")}
told |= {"place": os.getcwd(), "leads": os.getsid(0) == os.getpid()}
print(json.dumps({"message": json.dumps(told)}))
sys.stdout.flush()
if mode == "waits":
    sys.stdin.read()
if mode != "works":
    sys.exit("why not \\u00e9")
record = {"format": 1, "status": "finished", "fingerprint": os.environ["FINGERPRINT"]}
(folder / "run.json").write_text(json.dumps(record))
"""
CONFIG = TrialConfig(name="a", command="true {seed}")


@pytest.fixture
def cell(tmp_path, monkeypatch):
    (tmp_path / "quick_run.py").write_text(RUN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("FINGERPRINT", CONFIG.fingerprint())
    monkeypatch.setenv("MODE", "works")
    return Cell(config=CONFIG, folder=tmp_path / "runs" / "a", module="quick_run")


def told(texts):
    return json.loads(json.loads(texts[0])["messages"][0])


def test_a_process_has_its_threads_place_and_session(cell, tmp_path):
    texts = []
    cell.folder.mkdir(parents=True)
    runner = CellRunner(threads=3, gpus=0, folder=tmp_path, on_progress=texts.append)
    outcome = runner(cell)
    assert (outcome.cell, outcome.status, outcome.reason) == (cell, "finished", "")
    given = {"words": ["--threads", "3", "--end-with-parent"], "threads": "3", "gpus": None, "leads": True}
    assert told(texts) == given | {"place": str(tmp_path)}
    assert (cell.folder / "config.yaml").read_text() == CONFIG.to_yaml()
    assert (cell.folder / "log.txt").read_text() == "" and not runner._running
    assert [path.name for path in cell.folder.parent.iterdir()] == ["a"]
    (cell.folder / "config.yaml").unlink()
    assert runner(cell).status == "finished" and len(texts) == 2
    assert not (cell.folder / "config.yaml").exists()


def test_a_process_that_fails_says_why_in_its_own_words(cell, monkeypatch, tmp_path):
    monkeypatch.setenv("MODE", "fails")
    outcome = CellRunner(folder=tmp_path / "not here")(cell)
    log = cell.folder / "log.txt"
    assert (outcome.status, outcome.reason) == ("failed", f"why not é ({log})")


def test_a_cell_is_stopped_while_it_runs_and_before(cell, monkeypatch):
    monkeypatch.setenv("MODE", "waits")
    runner = CellRunner(on_progress=lambda text: runner.stop(signal.SIGTERM))
    outcome = runner(cell)
    assert (outcome.cell, outcome.status) == (cell, "stopped") and runner.stopping == signal.SIGTERM
    assert not runner._running
    assert runner(cell).status == "stopped"


def test_whoever_waits_for_a_gpu_may_be_stopped(cell, monkeypatch):
    asked, texts = [], []

    @contextmanager
    def taken_gpus(count, stopped):
        asked.append((count, stopped()))
        if stop:
            runner.stopping = signal.SIGTERM
        asked.append((count, stopped()))
        yield {"GPUS": "5"}

    monkeypatch.setattr(cell_process, "taken_gpus", taken_gpus)
    for stop, status in ((True, "stopped"), (False, "finished")):
        asked.clear()
        runner = CellRunner(gpus=2, on_progress=texts.append)
        assert runner(cell).status == status
        assert asked == [(2, False), (2, stop)]
        assert len(texts) == (not stop) + (not stop)
    assert told(texts)["gpus"] == "5"
    (cell.folder / "run.json").unlink()
    texts.clear()
    assert CellRunner(shares_gpus=False, on_progress=texts.append)(cell).status == "finished"
    assert told(texts)["gpus"] is None and told(texts)["place"] == os.getcwd()


def test_what_is_asked_for_and_not_there_is_a_failed_run(cell):
    outcome = CellRunner(gpus=10**6)(cell)
    assert outcome.status == "failed" and "choose fewer" in outcome.reason
