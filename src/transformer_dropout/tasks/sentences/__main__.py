"""``python -m transformer_dropout.tasks.sentences FOLDER``: the run that a folder's config.yaml describes."""

from pathlib import Path

from ...runs.listener import Listener
from ...runs.worker import work
from .config import load_config
from .run import run


def run_folder(folder: Path, listener: Listener) -> None:
    """Fine-tune the run of a folder."""
    run(load_config(folder / "config.yaml"), folder, listener=listener)


work("transformer_dropout.tasks.sentences", run_folder)
