"""How far runs are, read from their folders, so that it shows wherever they run."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .cells import Cell

PROGRESS_FILE = "progress.json"
SECONDS_BETWEEN_WRITES = 0.4
SECONDS_BETWEEN_READS = 0.3


class ProgressFile:
    """Keeps what a run last told, and every message of it, in a file of its folder.

    Args:
        folder: the run folder.
        on_write: called with the text that was written.
    """

    def __init__(self, folder: Path, on_write: Callable[[str], None] | None = None) -> None:
        self.path, self.on_write = folder / PROGRESS_FILE, on_write
        self.latest: dict[str, Any] = {}
        self.messages: list[str] = []
        self.written_at = 0.0

    def take(self, event: dict[str, Any]) -> None:
        """Take in one event; write it unless one was written a moment ago."""
        if "message" in event:
            self.messages.append(event["message"])
        else:
            self.latest = event
        if "message" in event or time.monotonic() - self.written_at > SECONDS_BETWEEN_WRITES:
            self.write()

    def write(self) -> None:
        """Replace the file; after a power cut it may be gone, which loses nothing."""
        if self.latest or self.messages:
            text = json.dumps({"latest": self.latest, "messages": self.messages})
            write_progress(self.path, text)
            self.written_at = time.monotonic()
            if self.on_write is not None:
                self.on_write(text)


def write_progress(path: Path, text: str) -> None:
    """Replace a progress file in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


class FolderWatch:
    """Tells what is new in the progress files of some cells.

    Args:
        cells: whose folders are read.
        on_event: called with a cell and each of its events.
    """

    def __init__(self, cells: Sequence[Cell], on_event: Callable[[Cell, dict], None]) -> None:
        self.cells, self.on_event = cells, on_event
        self._seen: dict[Path, tuple[int, list[str]]] = {}
        self._guard = threading.Lock()

    def look(self, cell: Cell) -> None:
        """Tell what one cell has told since the last look."""
        path = cell.folder / PROGRESS_FILE
        with self._guard:
            try:
                stamp = path.stat().st_mtime_ns
                before, told = self._seen.get(path, (0, []))
                if stamp == before:
                    return
                content = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return
            messages = content["messages"]
            # A run that was taken up again begins a new list, which may be as long as the old one.
            for text in messages[len(told) :] if messages[: len(told)] == told else messages:
                self.on_event(cell, {"message": text})
            if content["latest"]:
                self.on_event(cell, content["latest"])
            self._seen[path] = (stamp, messages)

    def close(self, cell: Cell) -> None:
        """Tell the last of a cell that ended; the file of a finished one is no longer needed."""
        self.look(cell)
        if cell.finished:
            (cell.folder / PROGRESS_FILE).unlink(missing_ok=True)

    @contextmanager
    def running(self) -> Iterator["FolderWatch"]:
        """Look at all folders a few times a second inside the ``with`` block."""
        # What an earlier call left is no news.
        for cell in self.cells:
            (cell.folder / PROGRESS_FILE).unlink(missing_ok=True)
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(SECONDS_BETWEEN_READS):
                for cell in self.cells:
                    self.look(cell)

        thread = threading.Thread(target=watch, daemon=True, name="progress")
        thread.start()
        try:
            yield self
        finally:
            ended.set()
            thread.join()
