"""``python -m transformer_dropout.training FOLDER``: train the run that a folder's config.yaml describes.

One JSON object a line on standard output tells its progress; one sentence on standard error what went
wrong. Many runs are mapped over a machine as many of these processes.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from ..errors import InputError
from .listener import Listener
from .processes import leave
from .run import Interrupted, choose_threads, run
from .run_config import load_run_config


def tell(**event: object) -> None:
    """Write one event."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run, and return the exit code: 2 for what a user can put right, 128 + n after signal n."""
    parser = argparse.ArgumentParser(prog="python -m transformer_dropout.training", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    choose_threads(arguments.threads)
    listener = Listener(
        progress=lambda progress: tell(**asdict(progress)), message=lambda text: tell(message=text)
    )
    try:
        config = load_run_config(arguments.folder / "config.yaml")
        run(config, arguments.folder, resume=True, listener=listener)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except Interrupted as interrupted:
        return 128 + interrupted.signal
    return 0


leave(main())
