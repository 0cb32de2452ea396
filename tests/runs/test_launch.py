"""Several processes by one command: one sentence whatever becomes of one of them."""

import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from transformer_dropout.errors import InputError
from transformer_dropout.runs.launch import launch, launched, sentence
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


@pytest.fixture
def elastic(monkeypatch):
    """Launch nothing; return what the launcher was asked for, and let it end as it is told."""
    asked = {"threads": None, "ends": None, "silent": None}

    def elastic_launch(config, program):
        def run(*words):
            asked.update(config=config, command=(program, *words), silent=logging.root.manager.disable)
            asked["threads"] = os.environ.get("OMP_NUM_THREADS")
            folder = Path(config.logs_specs.root_log_dir) / "attempt_0"
            for rank in range(2):
                (folder / f"{rank}").mkdir(parents=True)
                (folder / f"{rank}" / "stderr.log").write_bytes(f"said by {rank} \xff\n".encode("latin-1"))
            if asked["ends"]:
                raise asked["ends"]

        return run

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", elastic_launch)
    monkeypatch.setattr("transformer_dropout.runs.launch.leave", lambda code: sys.exit(code))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return asked


def test_so_many_processes_of_one_machine_run_one_module(elastic, capsys):
    before = logging.root.manager.disable
    launch(3, "my.module", ["a", "--b"])
    config = elastic["config"]
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node, config.max_restarts) == (1, 1, 3, 0)
    assert (config.rdzv_backend, config.rdzv_endpoint) == ("c10d", "localhost:0")
    assert elastic["command"] == (sys.executable, "-m", "my.module", "a", "--b")
    assert (elastic["threads"], elastic["silent"]) == ("1", logging.CRITICAL)
    assert capsys.readouterr().err == "said by 0 \ufffd\n"
    assert logging.root.manager.disable == before
    assert not Path(config.logs_specs.root_log_dir).exists()
    identity = config.run_id
    launch(1, "my.module", [])
    assert elastic["config"].run_id != identity


def test_a_launcher_that_is_asked_to_stop_ends_with_the_signals_code(elastic):
    elastic["ends"] = SignalException("stopped", signal.SIGINT)
    with pytest.raises(SystemExit) as end:
        launch(2, "my.module", [])
    assert end.value.code == 130


def test_a_process_that_fails_is_one_sentence_with_what_it_said(elastic):
    elastic["ends"] = ChildFailedError("my.module", {1: ProcessFailure(1, 7, 2, "none")})
    with pytest.raises(InputError, match=r"^said by 1 \ufffd$"):
        launch(2, "my.module", [])


def test_a_killed_process_is_told_what_to_do(tmp_path):
    words = "Process 2 of 2 was killed by SIGKILL; what was saved is kept: "
    assert sentence({1: Failure(-9)}, 2, tmp_path) == f"{words}continue with the same command and --resume."


def test_a_process_of_several_knows_it(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert not launched()
    monkeypatch.setenv("RANK", "0")
    assert launched()
