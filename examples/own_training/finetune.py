"""Compare regularizers in a training script that stays as it is.

Run it in this folder with `dropout compare finetune.py:train --arms arms.yaml --steps 60`.
"""

import runpy
import sys
from pathlib import Path
from typing import Any

from transformer_dropout.integrations.hugging_face import regularized_trainers

SCRIPT = Path(__file__).with_name("train_gpt2.py")


def train(trial: Any) -> None:
    """Call the script with the seed of the trial, and put its recipe into every Trainer that is made."""
    options = {
        "train_file": SCRIPT,
        "output_dir": trial.folder / "trainer",
        "seed": trial.seed,
        "max_steps": trial.steps or 60,
        "learning_rate": trial.settings.get("lr", 3e-3),
        "eval_strategy": "steps",
        "eval_steps": 20,
        "eval_on_start": True,
        "logging_steps": 20,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    sys.argv = [str(SCRIPT), *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
    with regularized_trainers(trial):
        runpy.run_path(str(SCRIPT), run_name="__main__")
