"""One of several processes is killed: the others say so in one sentence."""

import os
import signal
import subprocess
import sys
import time

import pytest

from transformer_dropout.runs.processes import lost_another

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        ("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1", True),
        ("Read error: Connection reset by peer", True),
        ("shape mismatch", False),
    ],
)
def test_an_error_that_another_process_is_gone(words, lost):
    assert lost_another(RuntimeError(words)) is lost


@pytest.mark.slow
def test_a_killed_rank_is_one_sentence(tmp_path, tiny, environment):
    folder = tmp_path / "run"
    folder.mkdir()
    config = tiny(steps=4000, eval_every=20)
    (folder / "config.yaml").write_text(config.to_yaml())
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [*TORCHRUN, "-m", "transformer_dropout.runs", str(folder)],
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=environment,
        )
    try:
        while not list(folder.glob("checkpoints/step-*[1-9]*")):
            assert process.poll() is None, (folder / "log.txt").read_text()
            time.sleep(0.05)
        listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
        # The last that was started is the one that writes no files.
        os.kill(int(listed.stdout.split()[-1]), signal.SIGKILL)
        assert process.wait(120)
    finally:
        process.kill()
    log = (folder / "log.txt").read_text()
    assert "Another process of this run has ended" in log
    assert "runs/loop.py" not in log
