"""A process that forks runs: each has streams, folder, variables and arguments of its own."""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec

import pytest

from transformer_dropout.runs import fork_server, worker
from transformer_dropout.runs.listener import Listener

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks runs")
# Without the package around it, whose import takes longer than the test.
SERVE = f"""
import importlib.util, json, os, sys
spec = importlib.util.spec_from_file_location("fork_server", {fork_server.__file__!r})
fork_server = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fork_server)
fork_server.serve()
told = {{"arguments": sys.argv[1:], "variables": dict(os.environ), "folder": os.getcwd()}}
print(json.dumps(told | {{"leads": os.getsid(0) == os.getpid()}}), flush=True)
code = sys.stdin.readline()
sys.stderr.write("said last\\n")
sys.exit(int(code))
"""


@pytest.fixture
def server():
    """The socket of a process that serves."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE], stdin=theirs.fileno(), start_new_session=True
        )
    yield ours
    ours.close()
    assert process.wait(20) == 0


def forked(server, folder, **variables):
    """Fork a run; return its streams, and where its number and its end are told."""
    pipes = [os.pipe() for _ in range(4)]
    (input_, to_run), (from_run, output), (errors, error), (end, told) = pipes
    asked = {"arguments": ["a", "--b"], "environment": variables, "directory": str(folder)}
    socket.send_fds(server, [json.dumps(asked).encode()], [input_, output, error, told])
    for pipe in (input_, output, error, told):
        os.close(pipe)
    ends = ((to_run, "w"), (from_run, "r"), (errors, "r"), (end, "r"))
    return [os.fdopen(number, mode) for number, mode in ends]


def test_each_fork_is_a_run_of_its_own_whose_end_is_told(server, tmp_path):
    for code in (0, 7):
        stdin, stdout, stderr, end = forked(server, tmp_path, ONE=str(code))
        number = int(end.readline())
        assert json.loads(stdout.readline()) == {
            "arguments": ["a", "--b"],
            "variables": {"ONE": str(code)},
            "folder": str(tmp_path),
            "leads": True,
        }
        assert os.getsid(number) == number
        stdin.write(f"{code}\n")
        stdin.flush()
        assert (end.read(), stderr.read(), stdout.read()) == (f"{code}\n", "said last\n", "")
        for stream in (stdin, stdout, stderr, end):
            stream.close()


def test_a_fork_that_is_killed_is_told_by_its_signal(server, tmp_path):
    streams = forked(server, tmp_path)
    end = streams[-1]
    os.kill(int(end.readline()), signal.SIGTERM)
    assert end.read() == "-15\n"
    for stream in streams:
        stream.close()


def test_what_a_run_needs_is_imported_before_any_is_forked(monkeypatch, tmp_path, tiny):
    done, trained, config, real = [], [], tiny(), importlib.import_module
    monkeypatch.setattr(fork_server, "IMPORTED", ("no_such_module", "json"))
    monkeypatch.setattr(
        "transformer_dropout.runs.run.run", lambda *given, **words: trained.append((given, words))
    )
    monkeypatch.setattr(importlib, "import_module", lambda name: done.append(name) or real(name))
    monkeypatch.setattr(fork_server.gc, "freeze", lambda: done.append("freeze"))
    monkeypatch.setattr(fork_server, "serve", lambda: done.append("serve"))
    monkeypatch.setattr(worker, "work", lambda *given: done.append(given))
    fork_server.main()
    monkeypatch.setattr(importlib, "import_module", real)
    assert done[:-1] == ["no_such_module", "json", "freeze", "serve"]
    module, run_folder = done[-1]
    assert module == "transformer_dropout.runs"
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    listener = Listener()
    run_folder(tmp_path, listener)
    assert trained == [((config, tmp_path), {"resume": True, "listener": listener})]


def test_what_is_imported_ahead_is_there():
    # A name that has moved would only make every fork slower.
    assert [name for name in fork_server.IMPORTED if find_spec(name) is None] == []
