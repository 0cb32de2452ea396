"""Who a run folder belongs to: this run, another, or nobody yet."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import InputError
from .files import clear_write_errors
from .processes import Processes
from .record import read_run
from .run_config import RunConfig


def check_folder(config: RunConfig, folder: Path, resume: bool) -> dict[str, Any] | None:
    """Return the record when the run is finished, None when there is something to do.

    Raises:
        InputError: when the folder is not this run's, or holds this run and ``resume`` was not asked for.
    """
    if not folder.exists():
        return None
    record = read_run(folder)
    if record is None:
        others = [path.name for path in folder.iterdir() if not is_own(path.name)]
        if others:
            raise InputError(
                f"{folder} exists and is no run folder (it holds {others[0]}); choose another with --out."
            )
        if any((folder / "checkpoints").glob("step-*")) and not resume:
            raise InputError(
                f"{folder} holds a run whose run.json cannot be read; add --resume to rebuild it from its "
                "checkpoints, or choose another folder with --out."
            )
        return None
    if record.get("fingerprint") != config.fingerprint():
        raise InputError(
            f"{folder} holds another run ({record.get('name')!r}, seed {record.get('seed')}); choose another "
            "folder with --out."
        )
    if not resume:
        raise InputError(
            f"{folder} already holds this run ({record.get('status')}); add --resume to continue it, or "
            "choose another folder with --out."
        )
    return record if record.get("status") == "finished" else None


# What a run folder may hold, also before its record is written.
OWN_NAMES = (
    "config.yaml",
    ".run.lock",
    "log.txt",
    "progress.json",
    "checkpoints",
    "metrics.jsonl",
    "stop",
    "run.json",
    "model",
)
# What a kill leaves of a file that was being written.
HALF_WRITTEN = re.compile(r"\.(config\.yaml|run\.json|metrics\.jsonl|progress\.json)\.\d+")


def is_own(name: str) -> bool:
    """Return whether a run puts a file or folder of this name into its folder."""
    return name in OWN_NAMES or HALF_WRITTEN.fullmatch(name) is not None


def clear_half_written(folder: Path) -> None:
    """Remove what a kill left of files that were being written."""
    for path in folder.iterdir():
        if HALF_WRITTEN.fullmatch(path.name):
            path.unlink()


@contextmanager
def locked(folder: Path, processes: Processes) -> Iterator[None]:
    """Hold the folder for this run alone; the system frees it when the process dies.

    A folder that was made for it goes again where the run is refused before it has written anything.
    """
    lock = FileLock(folder / ".run.lock")
    made = [path for path in (folder, *folder.parents) if not path.exists()] if processes.first else []
    if processes.first:
        with clear_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                raise InputError(
                    f"Another process is running in {folder}; wait for it, stop it, or choose another folder "
                    "with --out."
                ) from None
    try:
        yield
    except Exception:
        remove_unused(made, Path(lock.lock_file))
        raise
    finally:
        if processes.first:
            lock.release()


def remove_unused(folders: list[Path], lock: Path) -> None:
    """Remove folders, the inner ones first, of which the innermost holds nothing but a lock."""
    if not folders or {path.name for path in folders[0].iterdir()} != {lock.name}:
        return
    lock.unlink()
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            # Somebody else has put something there meanwhile.
            return
