"""A process ends when whoever started it is gone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Without the package around it, whose import takes longer than the test.
LOAD = """
import importlib.util, os, signal, subprocess, sys, time
spec = importlib.util.spec_from_file_location("orphan", sys.argv[1])
orphan = importlib.util.module_from_spec(spec)
spec.loader.exec_module(orphan)
"""
WITH_PARENT = """
orphan.end_with_parent()
print(repr(sys.stdin.read()), flush=True)
if "child" in sys.argv:
    print(subprocess.Popen(["sleep", "60"]).pid, flush=True)
time.sleep(60)
"""
WITH_LAUNCHER = """
if "child" in sys.argv:
    orphan.end_with_launcher()
    print(os.getpid(), flush=True)
    time.sleep(60)
subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1], sys.argv[2], "child"])
time.sleep(60)
"""


def started(code, *words, **options):
    from transformer_dropout.runs import orphan

    text = LOAD + code
    return subprocess.Popen(
        [sys.executable, "-c", text, orphan.__file__, text, *words],
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def gone(pid, seconds=10.0):
    """Return whether a process ends within so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("leads", [True, False])
def test_a_process_ends_with_the_pipe_that_its_parent_holds(leads):
    with started(WITH_PARENT, "child", stdin=subprocess.PIPE, start_new_session=leads) as process:
        assert process.stdout.readline() == "''\n"
        child = int(process.stdout.readline())
        process.stdin.write("whatever comes is not read by the program")
        process.stdin.flush()
        time.sleep(0.1)
        assert process.poll() is None
        process.stdin.close()
        # One that leads a group takes along what it has started.
        assert process.wait(10) == (-signal.SIGKILL if leads else 1)
        assert gone(child, 10 if leads else 0.2) is leads
        if not leads:
            os.kill(child, signal.SIGKILL)


def test_a_process_ends_soon_after_its_launcher():
    with started(WITH_LAUNCHER, start_new_session=True) as launcher:
        child = int(launcher.stdout.readline())
        assert not gone(child, 0.7)
        launcher.kill()
        assert gone(child)


@pytest.mark.parametrize("name", ["end_with_parent", "end_with_launcher"])
def test_a_process_that_is_done_ends_though_whoever_started_it_goes_on(name):
    with started(f"orphan.{name}()", stdin=subprocess.PIPE, start_new_session=True) as process:
        assert process.wait(10) == 0
