"""``python -m transformer_dropout.finetuning FOLDER``: the run that a folder's config.yaml describes.

One JSON object a line on standard output tells its progress; one sentence on standard error what went
wrong.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from ..errors import InputError
from ..training.listener import Listener
from ..training.run import choose_threads
from .config import load_config
from .run import run


def tell(**event: object) -> None:
    """Write one event."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run, and return the exit code: 2 for what a user can put right."""
    parser = argparse.ArgumentParser(prog="python -m transformer_dropout.finetuning", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    choose_threads(arguments.threads)
    try:
        listener = Listener(progress=lambda progress: tell(**asdict(progress)))
        run(load_config(arguments.folder / "config.yaml"), arguments.folder, listener=listener)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


sys.exit(main())
