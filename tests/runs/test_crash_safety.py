"""Real processes, killed at random moments: the resumed run is the run that was never killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice

import pytest

from transformer_dropout.runs.checkpoint import checkpoint_folders
from transformer_dropout.runs.record import read_metrics, read_run
from transformer_dropout.runs.run import run
from transformer_dropout.runs.training_config import EarlyStoppingConfig

MEASURED = ("step_seconds", "peak_memory_bytes")


@pytest.fixture
def random_run(tiny, learned):
    """A run whose every step draws masks, so that a lost random state shows at once."""
    return tiny(recipe=learned, steps=120, eval_every=6, accumulation=2)


@pytest.fixture
def stopping_run(tiny, learned):
    """A run that stops early and restores an earlier step."""
    stopping = EarlyStoppingConfig(patience=4)
    return tiny(recipe=learned, steps=400, eval_every=4, lr=0.2, min_lr=0.2, early_stopping=stopping)


@pytest.fixture
def start(environment):
    """Start the run of a folder as a process of its own."""
    processes = []

    def start(config, folder):
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(config.to_yaml())
        command = [sys.executable, "-m", "transformer_dropout.runs", str(folder)]
        with (folder / "log.txt").open("w") as log:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True
            )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def events(lines):
    """Read what a process told; a kill may have cut the last line short."""
    return [json.loads(line) for line in lines if line.endswith("\n")]


def signal_after(process, number, lines, seconds):
    """Send a signal after so many progress lines and seconds; return the exit code and what was told."""
    told = list(islice(process.stdout, lines))
    time.sleep(seconds)
    process.send_signal(number)
    told += process.stdout
    return process.wait(timeout=60), events(told)


def finish(process):
    """Wait for the end of a run that nobody disturbs; return what it told."""
    told = events(process.stdout)
    assert process.wait(timeout=60) == 0
    return told


def continued(told):
    """Return the step a process continued from, None when it began at 0."""
    for event in told:
        if event.get("message", "").startswith("Continuing from step"):
            return int(event["message"].rstrip(".").rsplit(" ", 1)[1])
    return None


def rows(folder):
    lines = read_metrics(folder / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def assert_same_run(folder, reference):
    """Check that two folders hold the same run, bit for bit."""
    assert rows(folder) == rows(reference)
    model = "model/model.safetensors"
    assert (folder / model).read_bytes() == (reference / model).read_bytes()
    results = [read_run(place)["result"] for place in (folder, reference)]
    for result in results:
        result.pop("wall_seconds")
    assert results[0] == results[1]
    newest, wanted = (checkpoint_folders(place / "checkpoints")[0] for place in (folder, reference))
    assert newest.name == wanted.name
    for path in wanted.glob("*.safetensors"):
        assert (newest / path.name).read_bytes() == path.read_bytes()


def kill_until(config, folder, start, chance, kills):
    """Kill a run so many times at random moments, then let it end; return the steps it continued from."""
    steps = []
    for _ in range(kills):
        process = start(config, folder)
        code, told = signal_after(
            process, signal.SIGKILL, chance.randint(1, 4), chance.choice([0, 0.01, 0.05, 0.2])
        )
        steps.append(continued(told))
        if code == 0:
            return steps
        assert code == -signal.SIGKILL
    return [*steps, continued(finish(start(config, folder)))]


def test_a_run_killed_twice_is_the_run_that_was_not(tmp_path, random_run, start):
    run(random_run, tmp_path / "whole")
    steps = kill_until(random_run, tmp_path / "run", start, random.Random(1), kills=2)
    assert any(step for step in steps)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_polite_signal_saves_the_current_step_and_the_run_goes_on(
    tmp_path, random_run, start, number, code
):
    folder = tmp_path / "run"
    returned, told = signal_after(start(random_run, folder), number, 2, 0.01)
    assert returned == code
    record = read_run(folder)
    assert record["status"] == "interrupted"
    saved = int(checkpoint_folders(folder / "checkpoints")[0].name.removeprefix("step-"))
    assert f"stopped by a signal at step {saved}" in record["error"]
    assert told[-1]["step"] <= saved < 120
    assert continued(finish(start(random_run, folder))) == saved
    run(random_run, tmp_path / "whole")
    assert_same_run(folder, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_many_kills_at_random_moments(tmp_path, random_run, start, seed):
    run(random_run, tmp_path / "whole")
    kill_until(random_run, tmp_path / "run", start, random.Random(100 + seed), kills=3)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_an_early_stopped_run_survives_kills(tmp_path, stopping_run, start):
    result = run(stopping_run, tmp_path / "whole")["result"]
    assert result["restored_step"] is not None
    kill_until(stopping_run, tmp_path / "run", start, random.Random(7), kills=2)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_a_kill_before_the_first_checkpoint_loses_nothing(tmp_path, random_run, start):
    code, _ = signal_after(start(random_run, tmp_path / "run"), signal.SIGKILL, 0, 1.4)
    assert code == -signal.SIGKILL
    finish(start(random_run, tmp_path / "run"))
    run(random_run, tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def forked(config, folder):
    """Continue a run in a copy of this process, which saves the start of another; return its number."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        run(config, folder, resume=True)
        code = 0
    finally:
        os._exit(code)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_runs_killed_at_random_moments_end_as_if_nothing_had_happened(tmp_path, tiny, learned, request):
    random_run = tiny(recipe=learned, steps=48, eval_every=4, accumulation=2)
    wanted, killed, runs, steps = request.config.getoption("kills"), 0, 0, set()
    run(random_run, tmp_path / "warm")  # compiled loops are there for all
    begun = time.perf_counter()
    run(random_run, tmp_path / "whole")
    seconds, chance = time.perf_counter() - begun, random.Random(wanted)
    while killed < wanted:
        folder, runs, code = tmp_path / f"run-{runs}", runs + 1, None
        while code != 0:
            child = forked(random_run, folder)
            if killed < wanted:
                time.sleep(chance.uniform(0, seconds))
                os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert code in (0, -signal.SIGKILL)
            killed += code != 0
            steps |= {place.name for place in checkpoint_folders(folder / "checkpoints")}
        assert_same_run(folder, tmp_path / "whole")
        shutil.rmtree(folder)
    # Not all at the beginning, and not all in one run.
    assert len(steps) > 3 and runs >= wanted // 20
