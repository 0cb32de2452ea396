"""``python -m transformer_dropout.runs FOLDER``: train the run that a folder's config.yaml describes.

Many runs are mapped over a machine as many of these processes.
"""

from pathlib import Path

from .listener import Listener
from .run import run
from .run_config import load_run_config
from .worker import work


def run_folder(folder: Path, listener: Listener) -> None:
    """Start or continue the run of a folder."""
    run(load_run_config(folder / "config.yaml"), folder, resume=True, listener=listener)


if __name__ == "__main__":
    work("transformer_dropout.runs", run_folder)
