"""Dropout at the input, at the hidden units and before the output: what each placement does."""

import torch
from drawing import chart, charts
from pages.digits import TASK, digits, everything, fit, perceptron, scores
from torch import nn

import transformer_dropout as td
from transformer_dropout.runs.task import Batch

SEEDS = (0, 1)
INPUT = td.Rule("input", td.Dropout, p=0.2)
FIRST = td.Rule("mlp_hidden", td.Dropout, p=0.5)
LAST = td.Rule("classifier", td.Dropout, p=0.5)
ARMS = {
    "none": [],
    "input 0.2": [INPUT],
    "first hidden layer 0.5": [FIRST],
    "last hidden layer 0.5": [LAST],
    "input 0.2, hidden 0.5": [INPUT, FIRST, LAST],
}
PIXELS, UNITS = ("input",), ("mlp_hidden", "classifier")
LOST = (0.0, 0.15, 0.3, 0.5)


def loss_without(
    model: nn.Module, batch: Batch, kinds: tuple[str, ...], share: float, draws: int = 8
) -> float:
    """Return the loss when a share of the values is lost at some places and the rest scaled up."""
    copy = TASK.build(TASK.Model(), digits())
    copy.load_state_dict(model.state_dict())
    td.regularize_(copy, td.Recipe([td.Rule(kind, td.Dropout, p=share) for kind in kinds]))
    torch.manual_seed(0)
    with torch.no_grad():
        return sum(TASK.loss(copy.train(), batch).item() for _ in range(draws)) / draws


def measure() -> dict:
    """Return the means over seeds of each arm's losses, and curves over what is lost."""
    splits = digits()
    batch, seen = everything(splits.validation), everything(splits.train)
    found = {}
    for name, rules in ARMS.items():
        models = [fit(perceptron(splits, seed=seed), splits, rules, seed=seed) for seed in SEEDS]
        each = [
            {
                "train": scores(model, seen)["loss"],
                **scores(model, batch),
                "pixels lost": loss_without(model, batch, PIXELS, 0.3),
                "units lost": loss_without(model, batch, UNITS, 0.5),
            }
            for model in models
        ]
        found[name] = {
            "means": {key: sum(one[key] for one in each) / len(each) for key in each[0]},
            "pixels": [(share, loss_without(models[0], batch, PIXELS, share)) for share in LOST],
            "units": [(share, loss_without(models[0], batch, UNITS, share)) for share in LOST],
        }
    return found


def table(found: dict) -> str:
    """Return a line for each arm."""
    lines = [
        "| dropout | train loss | validation loss | accuracy | pixels lost | units lost |",
        "|---|---|---|---|---|---|",
    ]
    for name, arm in found.items():
        lines.append(f"| {name} | {' | '.join(f'{mean:.3f}' for mean in arm['means'].values())} |")
    return "\n".join(lines)


def figure(found: dict) -> str:
    """Return the loss over the share of pixels, and of hidden units, that are lost."""
    pixels, units = ({name: arm[key] for name, arm in found.items()} for key in ("pixels", "units"))
    return charts(
        chart(0, pixels, ("share of pixels lost", "validation loss")),
        chart(370, units, ("share of hidden units lost", "validation loss")),
        width=370,
    )
