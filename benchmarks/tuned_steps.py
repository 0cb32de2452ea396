"""A training step of tuned methods, by one of dropout with weight decay: what equal steps are in seconds.

Both sides are runs of a committed record (`experiments/tuned`), seed 0, by the loop that trained them, from
their first step on. The targets ask for no more than a tenth above the ratio of the FLOPs that the records
count for a step.
"""

import json
from functools import partial
from pathlib import Path

import torch

from transformer_dropout.runs.loop import Training
from transformer_dropout.runs.processes import Processes
from transformer_dropout.runs.run import prepare
from transformer_dropout.runs.run_config import load_run_config

from .rounds import timed_ratio
from .row import Budget, Measurement, Row

RECORDS = Path(__file__).resolve().parents[1] / "experiments" / "tuned"
RIVAL = "dropout-weight-decay"


def as_recorded(setting: str, arm: str) -> tuple[Training, str]:
    """Return a recorded run before its first step, and how near to the record it begins."""
    folder = RECORDS / setting / "runs" / arm / "seed-0"
    recorded = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    config = load_run_config(folder / "config.yaml")
    training = Training(config, prepare(config), Processes(rank=0, size=1, device=torch.device("cpu")))
    found = training.evaluate()["val_loss"]
    off = abs(found / recorded["val_loss"] - 1)
    assert off < 1e-3, f"{setting}, {arm} begins at {found}, its record at {recorded['val_loss']}"
    return training, f"{arm} begins within {off:.0e} of its record"


def flops(setting: str, arm: str) -> float:
    """Return what a recorded run counts for the training of one item."""
    recorded = json.loads((RECORDS / setting / "runs" / arm / "seed-0" / "run.json").read_text("utf-8"))
    (found,) = (n for name, n in recorded["cost"].items() if name.startswith("training_flops_per"))
    return found


def step_ratio(budget: Budget, *, setting: str, arm: str) -> Measurement:
    """Time steps of a tuned method, and of dropout with weight decay."""
    (ours, near), (rival, rival_near) = (as_recorded(setting, name) for name in (arm, RIVAL))
    config = ours.config
    return timed_ratio(
        {"rival": rival.advance, "ours": ours.advance},
        budget,
        over="ours",
        under="rival",
        # Both stay within the steps of their runs: schedules end there.
        calls=3 if budget.quick else 20,
        gate=f"{near}, {rival_near}",
        about={"recipe": config.recipe, "batch": config.training.batch},
    )


def row(setting: str, model: str, method: str, arm: str) -> Row:
    """Return one row; its target is a tenth above what its FLOPs take."""
    return Row(
        name=f"step of the tuned {model}: {method} / dropout + weight decay",
        path="native",
        target=round(1.1 * flops(setting, arm) / flops(setting, RIVAL), 2),
        at_least=False,
        measure=partial(step_ratio, setting=setting, arm=arm),
    )


DECODER, VISION = ("docstrings", "decoder"), ("digits_vit", "vision transformer")
ROWS = (
    row(*DECODER, "weight decay", "weight-decay"),
    row(*DECODER, "ReLU with L1", "relu-with-l1"),
    row(*DECODER, "R-Drop", "r-drop"),
    row(*VISION, "ReLU with L1", "relu-with-l1"),
    row(*VISION, "averaged weights", "averaged-weights"),
    row(*VISION, "R-Drop", "r-drop"),
    row(*VISION, "LearnedDropout", "learneddropout"),
    row(*VISION, "LearnedDropout, held-out gates", "learneddropout-held-out-gates"),
)
