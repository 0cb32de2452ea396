"""Folders of a cache that are either whole or not there, whoever else writes and whenever a process dies."""

import contextlib
import json
import shutil
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any

from ....errors import InputError
from ....runs.checkpoint import digest

_MANIFEST = "manifest.json"


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write a folder's last file, which holds the digest of each other one."""
    digests = {file.name: digest(file) for file in sorted(folder.iterdir())}
    text = json.dumps({**content, "files": digests}, indent=2)
    (folder / _MANIFEST).write_text(text + "\n", encoding="utf-8")


def is_sound(entry: Path) -> bool:
    """Return whether an entry is there with every file as its manifest says, to the last bit."""
    try:
        digests = json.loads((entry / _MANIFEST).read_text(encoding="utf-8"))["files"]
        return all(digest(entry / name) == expected for name, expected in digests.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # torn, or not ours
        return False


@contextlib.contextmanager
def publish(entry: Path) -> Generator[Path, None, None]:
    """Give an empty folder to write into; on leaving, it takes the entry's name in one step.

    A damaged entry is replaced. When another process published the same entry meanwhile, that one stays.
    After an exception nothing is published; a process that is killed leaves a folder that nobody reads.

    Raises:
        InputError: when the place is full or cannot be written.
    """
    folder = _sibling(entry)
    try:
        folder.mkdir(parents=True)
        yield folder
        try:
            folder.rename(entry)
        except OSError:
            # A folder with files in it has the name already. Another process's is equal to this one, and
            # perhaps in use: only a damaged one may go.
            if not is_sound(entry):
                _move_aside(entry)
                folder.rename(entry)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(
            f"Prepared data cannot be kept in {entry.parent}: {reason}; make room or get permission there, "
            "or set XDG_CACHE_HOME to another folder."
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_aside(entry: Path) -> None:
    aside = _sibling(entry)
    with contextlib.suppress(FileNotFoundError):
        entry.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _sibling(entry: Path) -> Path:
    """Return a new name beside the entry, so that renaming stays on one file system."""
    return entry.with_name(f"{entry.name}.{uuid.uuid4().hex}.tmp")
