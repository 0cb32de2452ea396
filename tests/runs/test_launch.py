"""Several processes by one command: one sentence whatever becomes of one of them."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from transformer_dropout.runs.launch import sentence
from transformer_dropout.runs.record import read_run


@dataclass
class Failure:
    exitcode: int


@pytest.mark.parametrize(
    ("codes", "said", "expected"),
    [
        ({0: 2, 1: -9}, "error: x\n", "Process 2 of 3 was killed by SIGKILL; what was saved is kept"),
        ({0: -15, 2: -11}, "", "Process 3 of 3 was killed by SIGSEGV"),
        ({0: -15}, "", "Process 1 of 3 was killed by SIGTERM"),
        ({1: 2}, "a warning\nerror: The batch is odd.\n\n", "The batch is odd."),
        ({1: 3}, "", "Process 2 of 3 ended with exit code 3 and said nothing."),
    ],
)
def test_the_sentence_is_of_what_came_first(tmp_path, codes, said, expected):
    for rank in codes:
        (tmp_path / "attempt_0" / f"{rank}").mkdir(parents=True)
        (tmp_path / "attempt_0" / f"{rank}" / "stderr.log").write_text(said)
    found = sentence({rank: Failure(code) for rank, code in codes.items()}, 3, tmp_path)
    assert found.startswith(expected)


@pytest.fixture
def start(tmp_path, environment):
    """Start `dropout train` on two processes."""
    started = []

    def start(config, *words):
        (tmp_path / "config.yaml").write_text(config.to_yaml())
        command = [sys.executable, "-m", "transformer_dropout", "train", "config.yaml", "--out", "run"]
        process = subprocess.Popen(
            [*command, "--processes", "2", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
def test_processes_end_with_a_launcher_that_is_killed(tmp_path, tiny, start):
    process = start(tiny(steps=100_000, eval_every=20))
    while not list((tmp_path / "run").glob("checkpoints/step-*[1-9]*")):
        assert process.poll() is None
        time.sleep(0.05)
    ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(is_running(int(rank)) for rank in ranks):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(ranks) >= 2


def is_running(number):
    """Return whether there is a process of this number that has not ended."""
    state = Path(f"/proc/{number}/stat")
    return state.is_file() and state.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_a_killed_process_is_one_sentence_and_the_same_command_goes_on(tmp_path, tiny, start):
    config = tiny(steps=4000, eval_every=20)
    process = start(config)
    while not list((tmp_path / "run").glob("checkpoints/step-*[1-9]*")):
        assert process.poll() is None
        time.sleep(0.05)
    ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(ranks[-1]), signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: Process ") and len(err.splitlines()) == 1
    assert "of 2 was killed by SIGKILL" in err

    process = start(config, "--resume")
    while "Continuing from step" not in process.stdout.readline():
        assert process.poll() is None
    # Both hear of it, as at a terminal.
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, "")
    assert "Saved at step" in out
    assert read_run(tmp_path / "run")["status"] == "interrupted"


@pytest.mark.slow
def test_what_the_processes_refuse_is_one_sentence(tmp_path, tiny, start):
    process = start(tiny(batch=5))
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, len(err.splitlines())) == (2, "", 1)
    assert "5 cannot be shared among 2 processes; use --set training.batch=6" in err
    assert not (tmp_path / "run").exists()
