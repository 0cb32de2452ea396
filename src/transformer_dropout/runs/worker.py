"""A run as a process of its own, which tells a parent how it goes.

One JSON object per line on standard output tells progress and messages; one sentence on standard error says
what went wrong.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from ..errors import InputError
from ..kernels.freed_memory import keep_freed_memory
from .listener import Listener
from .orphan import end_with_parent
from .processes import leave
from .run import Interrupted, choose_threads


def event_writer() -> Callable[..., None]:
    """Take standard output for events, and let whatever else is printed go to standard error."""
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def tell(**event: object) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    return tell


def work(module: str, run_folder: Callable[[Path, Listener], Any]) -> NoReturn:
    """Run the folder that the command line names, and end the process.

    Exits with 0, with 2 for what a user can put right, with 128 + n after signal n.

    Args:
        module: the module's name on the command line.
        run_folder: trains the run that a folder's ``config.yaml`` describes.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=__doc__)
    parser.add_argument("folder", type=Path, help="a run folder with its config.yaml")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument(
        "--end-with-parent", action="store_true", help="end at once when standard input closes"
    )
    arguments = parser.parse_args()
    if arguments.end_with_parent:
        end_with_parent()
    choose_threads(arguments.threads)
    keep_freed_memory()
    tell = event_writer()
    listener = Listener(
        progress=lambda progress: tell(**asdict(progress)), message=lambda text: tell(message=text)
    )
    try:
        run_folder(arguments.folder, listener)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        leave(2)
    except Interrupted as interrupted:
        leave(128 + interrupted.signal)
    leave(0)
