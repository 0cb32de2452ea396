"""GPUs for runs: each takes one that is free on its machine, unless told otherwise."""

import getpass
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import InputError

SECONDS_BETWEEN_TRIES = 0.5


def visible_gpus() -> list[str]:
    """Return the names, as CUDA_VISIBLE_DEVICES has them, of the GPUs that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


@contextmanager
def taken_gpus(count: int | None, stopped: Callable[[], bool]) -> Iterator[dict[str, str]]:
    """Hold some GPUs of this machine and yield the environment that shows a run just these.

    Files that the system unlocks when a process dies tell which are taken, so that comparisons, and workers
    that know nothing of each other, share a machine.

    Args:
        count: how many; None for one where there is any.
        stopped: whether to give up waiting for one.

    Raises:
        InputError: when the machine has fewer.
    """
    visible = visible_gpus()
    wanted = min(1, len(visible)) if count is None else count
    if wanted > len(visible):
        raise InputError(f"--gpus {wanted}: this machine shows {len(visible)}; choose fewer.")
    if not wanted:
        yield {} if count is None else {"CUDA_VISIBLE_DEVICES": ""}
        return
    with ExitStack() as held:
        names: list[str] = []
        while not stopped():
            names = take_free(visible, wanted, held)
            if len(names) == wanted:
                break
            # Some that are held while waiting for the rest could wait for another's forever.
            held.close()
            names = []
            time.sleep(SECONDS_BETWEEN_TRIES)
        yield {"CUDA_VISIBLE_DEVICES": ",".join(names)}


def take_free(visible: list[str], wanted: int, held: ExitStack) -> list[str]:
    """Take so many GPUs, or all that are free where these are fewer."""
    names: list[str] = []
    for name in visible:
        if len(names) < wanted and take(name, held):
            names.append(name)
    return names


def take(name: str, held: ExitStack) -> bool:
    """Take one GPU if it is free."""
    place = Path(tempfile.gettempdir()) / f"transformer-dropout-{getpass.getuser()}-gpu-{name}.lock"
    lock = FileLock(place)
    try:
        held.enter_context(lock.acquire(blocking=False))
    except Timeout:
        return False
    return True
