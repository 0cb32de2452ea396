"""Several processes of this machine for one run, by PyTorch's launcher, with one sentence at a bad end.

``torchrun`` starts the same processes; when one fails, it prints its own traceback and a summary of every
process from a process of its own, and nothing that a rank does keeps it from that.
"""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from ..errors import InputError
from .processes import leave


def launched() -> bool:
    """Return whether this process is one of several that a launcher has started."""
    return "RANK" in os.environ


def launch(processes: int, module: str, words: Sequence[str]) -> None:
    """Run ``python -m module words`` as so many processes of one run, and wait for their end.

    What they write to standard error is shown when all have ended well; else the sentence that matters is.

    Args:
        processes: how many.
        module: what each of them runs.
        words: its command line.

    Raises:
        InputError: when one of them fails or is killed.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # As torchrun does: more threads than cores would be slower than one each.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="dropout-") as place, silent_launcher():
        logs = Path(place)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=place, redirects=Std.ERR),
        )
        try:
            elastic_launch(config, sys.executable)("-m", module, *words)
        except SignalException as stopped:
            leave(128 + int(stopped.sigval))
        except ChildFailedError as error:
            raise InputError(sentence(error.failures, processes, logs)) from None
        sys.stderr.write(standard_error_of(0, logs))


@contextmanager
def silent_launcher() -> Iterator[None]:
    """Keep the launcher's warnings about processes that end from being printed."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def sentence(failures: Mapping[int, Any], processes: int, logs: Path) -> str:
    """Return why the processes did not end well.

    Args:
        failures: by rank, how each ended that failed.
        processes: how many there were.
        logs: where the launcher has put what they wrote to standard error.
    """
    killed = {rank: signal.Signals(-found.exitcode) for rank, found in failures.items() if found.exitcode < 0}
    words = {
        rank: f"Process {rank + 1} of {processes} was killed by {number.name}; what was saved is kept: "
        "continue with the same command and --resume."
        for rank, number in killed.items()
    }
    # The launcher itself asks the others to end, by SIGTERM.
    first = [words[rank] for rank, number in sorted(killed.items()) if number != signal.SIGTERM]
    for rank in sorted(failures):
        lines = [
            line.removeprefix("error: ")
            for line in standard_error_of(rank, logs).splitlines()
            if line.strip()
        ]
        first += lines[-1:]
    rank, found = min(failures.items())
    nothing = f"Process {rank + 1} of {processes} ended with exit code {found.exitcode} and said nothing."
    return [*first, *words.values(), nothing][0]


def standard_error_of(rank: int, logs: Path) -> str:
    """Return what a process has written to standard error."""
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in logs.rglob(f"{rank}/stderr.log"))
    return "".join(texts)
