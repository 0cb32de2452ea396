"""Runs that are forks of one process of this machine, which has imported what they need."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

from .gpus import visible_gpus

SERVER = "transformer_dropout.runs.fork_server"


def can_fork(gpus: int | None) -> bool:
    """Return whether runs may be forks: on Linux, where none computes on a GPU, which no fork may share."""
    return sys.platform == "linux" and (gpus == 0 or not visible_gpus())


class ForkedRun:
    """A run that was forked, with the methods of `subprocess.Popen` that are used of it.

    Attributes:
        stdin, stdout: its standard streams.
        pid: the number of its process.
        returncode: how it ended, below 0 by a signal; None until somebody has waited for it.
    """

    def __init__(self, pid: int, stdin: IO[str], stdout: IO[str], ended: IO[bytes]) -> None:
        self.pid, self.stdin, self.stdout, self._ended = pid, stdin, stdout, ended
        self.returncode: int | None = None
        self._waiting = threading.Lock()

    def send_signal(self, number: int) -> None:
        """Send a signal, if it has not ended."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended.

        Raises:
            subprocess.TimeoutExpired: when it goes on for so many seconds.
        """
        with self._waiting:
            if self.returncode is None:
                if not select.select([self._ended], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired(SERVER, timeout or 0.0)
                # Empty when whoever watched over it was killed, and it too, as its streams closed.
                self.returncode = int(self._ended.readline() or -signal.SIGKILL)
                self._ended.close()
            return self.returncode


class ForkServer:
    """Starts runs as forks of a process that is started for the first of them, and ends with this object.

    Args:
        threads: CPU threads of a run.

    Attributes:
        works: false once a fork has failed; no other is then tried.
    """

    def __init__(self, threads: int) -> None:
        self.threads, self.works = threads, True
        self._connection: socket.socket | None = None
        self._alone = threading.Lock()

    def connect(self) -> socket.socket:
        """Start the process that forks, and return the socket that it listens to."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", SERVER],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": str(self.threads)},
                start_new_session=True,
            )
        weakref.finalize(self, end_server, ours, process)
        return ours

    def start(
        self, arguments: list[str], log: IO[str], environment: Mapping[str, str], directory: Path
    ) -> ForkedRun | None:
        """Return a run that was forked; None where that does not work, and it has to be started anew.

        Args:
            arguments: of the command line.
            log: where its standard error goes.
            environment: all its variables.
            directory: where it works.
        """
        if not self.works:
            return None
        asked = {"arguments": arguments, "environment": dict(environment), "directory": str(directory)}
        (input_, to_run), (from_run, output), (end, told) = (os.pipe() for _ in range(3))
        with ExitStack() as ours:
            stdin, stdout = (ours.enter_context(os.fdopen(*end)) for end in ((to_run, "w"), (from_run, "r")))
            # Not buffered, so that what has come and not been read can be waited for.
            ended = ours.enter_context(os.fdopen(end, "rb", buffering=0))
            try:
                with self._alone:
                    self._connection = self._connection or self.connect()
                    message = [json.dumps(asked).encode()]
                    socket.send_fds(self._connection, message, [input_, output, log.fileno(), told])
            except OSError:
                self.works = False
            finally:
                for pipe in (input_, output, told):
                    os.close(pipe)
            number = ended.readline() if self.works else b""
            self.works = bool(number)
            if not number:
                return None
            ours.pop_all()
            return ForkedRun(int(number), stdin, stdout, ended)


def end_server(connection: socket.socket, process: subprocess.Popen) -> None:
    """Let the process that forks end, and wait for that."""
    connection.close()
    process.wait()
