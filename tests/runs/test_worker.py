"""A run as a process of its own: what it tells on which stream, and with which code it ends."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from transformer_dropout.errors import InputError
from transformer_dropout.runs import worker
from transformer_dropout.runs.listener import RunProgress
from transformer_dropout.runs.run import Interrupted

TELL = """
import sys
from transformer_dropout.runs.worker import event_writer
tell = event_writer()
print("a word in between", flush=True)
tell(step=1, name="né")
sys.stderr.write(sys.stdin.read())
"""


def test_events_go_to_standard_output_and_whatever_else_is_printed_does_not(environment):
    done = subprocess.run(
        [sys.executable, "-c", TELL],
        input="the end",
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert json.loads(done.stdout) == {"step": 1, "name": "né"}
    assert done.stderr == "a word in between\nthe end"


@pytest.fixture
def work(monkeypatch):
    """Work on a folder in this process; return the code it would end with, and what it would tell and do."""
    told, done = [], []

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(worker, "event_writer", lambda: lambda **event: told.append(event))
    monkeypatch.setattr(worker, "leave", leave)
    monkeypatch.setattr(worker, "choose_threads", done.append)
    for name in ("end_with_parent", "keep_freed_memory"):
        monkeypatch.setattr(worker, name, lambda name=name: done.append(name))

    def run_folder(folder, listener):
        listener.progress(RunProgress(step=1, steps=2, loss=0.5))
        listener.message(str(folder))
        ends = {"wrong": InputError("It does not fit."), "stopped": Interrupted(15, 3)}
        if folder.name in ends:
            raise ends[folder.name]

    def work(*words):
        told.clear(), done.clear()
        monkeypatch.setattr(sys, "argv", ["worker", *words])
        with pytest.raises(SystemExit) as end:
            worker.work("my.module", run_folder)
        return end.value.code, list(told), list(done)

    return work


@pytest.mark.parametrize(
    ("folder", "code", "error"), [("wrong", 2, "It does not fit.\n"), ("stopped", 143, ""), ("right", 0, "")]
)
def test_the_code_says_how_it_ended(work, capsys, folder, code, error):
    found, told, done = work(folder)
    assert (found, capsys.readouterr().err) == (code, error)
    progress = {"step": 1, "steps": 2, "loss": 0.5, "val_loss": None, "keep": None}
    assert told == [progress, {"message": str(Path(folder))}]
    assert done == [1, "keep_freed_memory"]


def test_what_is_asked_for_on_the_command_line_is_done(work, capsys):
    code, _, done = work("right", "--threads", "2", "--end-with-parent")
    assert (code, done) == (0, ["end_with_parent", 2, "keep_freed_memory"])
    code, told, done = work()
    assert (code, told, done) == (2, [], [])
    assert "usage: python -m my.module" in capsys.readouterr().err
