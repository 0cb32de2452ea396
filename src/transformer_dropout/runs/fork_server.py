"""``python -m transformer_dropout.runs.fork_server``: a process with everything imported, which forks runs.

Importing takes some seconds of a processor, as long as many a small run trains; a fork takes none of them.
Standard input is a Unix socket. A message is a run as JSON, with four file descriptors: the run's standard
streams, and where its process number and, once it has ended, its exit code are written.
"""

import gc
import importlib
import json
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import Any

LARGEST_MESSAGE = 2**18
STREAMS = 3
# Beside the training itself: what torch and the tasks import when they first need it.
IMPORTED = (
    "transformer_dropout.tasks.language",
    "transformer_dropout.tasks.images",
    "transformer_dropout.kernels.native.attention",
    "transformer_dropout.kernels.native.dropout",
    "transformer_dropout.kernels.native.mask",
    "torch._dynamo",
    "torch._meta_registrations",
    "torch.utils.flop_counter",
)


def serve() -> None:
    """Fork a run for each message until the other end of the socket is closed; return in each fork."""
    connection = socket.socket(fileno=sys.stdin.fileno())
    # Those that watch over a run are not waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, LARGEST_MESSAGE, STREAMS + 1)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            connection.detach()
            return watched(json.loads(message), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def watched(asked: dict[str, Any], descriptors: list[int]) -> None:
    """Return in a fork that is to be the run; in this process tell its number and how it ends."""
    *streams, told = descriptors
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(told)
        return become(asked, streams)
    for stream in (*streams, *range(STREAMS)):
        os.close(stream)
    os.write(told, f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    with suppress(OSError):
        os.write(told, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def become(asked: dict[str, Any], streams: list[int]) -> None:
    """Give this process the streams, folder, environment and arguments of a run."""
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["directory"])
    sys.argv = [sys.argv[0], *asked["arguments"]]


def main() -> None:
    """Import, serve, and in each fork train."""
    from .__main__ import run_folder
    from .worker import work

    for name in IMPORTED:
        # What is not installed, or broken, is told of by the run that needs it.
        with suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # no fork looks at, and so copies, what all share
    serve()
    work("transformer_dropout.runs", run_folder)


if __name__ == "__main__":
    main()
