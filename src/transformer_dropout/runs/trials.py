"""``python -m transformer_dropout.runs.trials FOLDER``: the trial that a folder's config.yaml describes."""

from pathlib import Path

from .listener import Listener
from .run_trial import run_trial
from .trial_config import load_trial_config
from .worker import work


def run_folder(folder: Path, listener: Listener) -> None:
    """Start a trial, or begin again one that was killed."""
    run_trial(load_trial_config(folder / "config.yaml"), folder, listener)


if __name__ == "__main__":
    work("transformer_dropout.runs.trials", run_folder)
