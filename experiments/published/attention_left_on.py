"""Evaluate the trained baselines properly, and with attention dropout left on as in the published code.

    python experiments/published/attention_left_on.py runs/published experiments/published

Reads the models of a finished comparison, writes ``attention_left_on.json`` into the second folder.
"""

import json
import sys
from pathlib import Path

import numpy as np

from transformer_dropout.runs.evaluate import Evaluator, fixed_randomness
from transformer_dropout.runs.processes import joined_processes
from transformer_dropout.runs.run_config import load_run_config
from transformer_dropout.tasks.language.saved_model import load_model


def evaluated(folder: Path) -> dict[str, float]:
    """Return the validation losses of one run's model, with its attention dropout off and on."""
    config = load_run_config(folder / "config.yaml")
    task = config.find_task()
    validation = task.prepare(config.model, config.data, None).validation
    model, regularization = load_model(folder / "model")
    with joined_processes() as alone:
        evaluator = Evaluator(task=task, model=model, processes=alone, autocast=False)
        everything = np.arange(len(validation))
        off = evaluator.scores(validation, everything)["loss"]
        for placed in regularization.placed:
            if placed.site.kind == "attention_weights":
                placed.layer.train()
                placed.layer.train = lambda mode=True, layer=placed.layer: layer
        with fixed_randomness(config.seed, alone.device):
            on = evaluator.scores(validation, everything)["loss"]
    return {"off": off, "on": on}


def main(runs: str, out: str) -> None:
    """Evaluate every baseline that has dropout, and write what came out."""
    found = {}
    for folder in sorted(Path(runs, "runs").glob("dropout-*/seed-*")):
        found[f"{folder.parent.name}/{folder.name}"] = evaluated(folder)
        print(folder, found[f"{folder.parent.name}/{folder.name}"])
    Path(out, "attention_left_on.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
