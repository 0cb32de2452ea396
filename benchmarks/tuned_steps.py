"""A training step of tuned methods, by one of dropout with weight decay: what equal steps are in seconds.

Both sides are runs of a committed record (`experiments/tuned`), seed 0, by the loop that trained them, from
their first step on. Counted in products a step of R-Drop is twice, of LearnedDropout 1.29 and of
LearnedDropout with held-out gates 2.12 times as long, of the others as long; the targets ask for no more
than a tenth above that.
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


def row(setting: str, model: str, method: str, arm: str, products: float) -> Row:
    """Return one row; its target is a tenth above what the products take."""
    return Row(
        name=f"step of the tuned {model}: {method} / dropout + weight decay",
        path="native",
        target=round(1.1 * products, 2),
        at_least=False,
        measure=partial(step_ratio, setting=setting, arm=arm),
    )


ROWS = (
    row("docstrings", "decoder", "weight decay", "weight-decay", 1.0),
    row("docstrings", "decoder", "ReLU with L1", "relu-with-l1", 1.0),
    row("docstrings", "decoder", "R-Drop", "r-drop", 2.0),
    row("digits_vit", "vision transformer", "ReLU with L1", "relu-with-l1", 1.0),
    row("digits_vit", "vision transformer", "averaged weights", "averaged-weights", 1.0),
    row("digits_vit", "vision transformer", "R-Drop", "r-drop", 2.0),
    row("digits_vit", "vision transformer", "LearnedDropout", "learneddropout", 1.29),
    row(
        "digits_vit",
        "vision transformer",
        "LearnedDropout, held-out gates",
        "learneddropout-held-out-gates",
        2.12,
    ),
)
