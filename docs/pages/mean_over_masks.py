"""One pass with everything kept beside the mean over masks: linear, deep, and on shifted digits."""

from itertools import product

import torch
import torch.nn.functional as F
from drawing import chart, charts
from pages.digits import digits, everything, fit, perceptron
from torch import Tensor, nn

import transformer_dropout as td

DEPTHS = (1, 2, 4)
SHIFTS = (0, 1, 2)
PASSES = (2, 5, 20, 50)


def rules(depth: int) -> list[td.Rule]:
    """Return dropout of half of all hidden units."""
    kinds = ("mlp_hidden", "classifier") if depth > 1 else ("classifier",)
    return [td.Rule(kind, td.Dropout, p=0.5) for kind in kinds]


def linear_difference(p: float = 0.3, inputs: int = 10) -> float:
    """Return how far a linear layer's exact mean over all masks of its input is from one pass."""
    torch.manual_seed(0)
    layer, x = nn.Linear(inputs, 3).double(), torch.randn(inputs, dtype=torch.float64)
    masks = torch.tensor(list(product((0.0, 1.0), repeat=inputs)), dtype=torch.float64)
    chances = (masks * (1 - p) + (1 - masks) * p).prod(1)
    with torch.no_grad():
        return (chances @ layer(x * masks / (1 - p)) - layer(x)).abs().max().item()


def predicted(model: nn.Module, x: Tensor, passes: int) -> tuple[Tensor, Tensor]:
    """Return mean logits and mean class probabilities over masks."""
    torch.manual_seed(0)
    with td.mc_dropout(model, passes) as predict:
        found = predict(x=x)
    return found.mean, found.probabilities


def share(one: Tensor, other: Tensor) -> float:
    """Return the probability mass that one has to move to get from one prediction to another, on average."""
    return (one - other).abs().sum(1).mean().item() / 2


def differences(depth: int, passes: int = 600) -> dict[str, float]:
    """Return how far one pass is from the mean over masks for a trained perceptron of this depth."""
    splits = digits()
    model = fit(perceptron(splits, (256,) * depth), splits, rules(depth), steps=400)
    x = everything(splits.validation).inputs["x"][:100]
    with torch.no_grad():
        logits = model(x)
    mean, probabilities = predicted(model, x, passes)
    return {
        "logits": ((logits - mean).norm() / mean.norm()).item(),
        "geometric": share(logits.softmax(1), mean.softmax(1)),
        "arithmetic": share(logits.softmax(1), probabilities),
    }


def shifted(images: Tensor, pixels: int) -> Tensor:
    """Return images moved to the right; black comes in."""
    return F.pad(images, (pixels, 0))[..., : images.shape[-1]]


def quality(probabilities: Tensor, targets: Tensor) -> dict[str, float]:
    """Return loss in nats, accuracy, and the expected calibration error over ten bins."""
    confidence, guess = probabilities.max(1)
    right = (guess == targets).float()
    bins = (confidence * 10).long().clamp_max(9)
    gaps = torch.zeros(10).index_add(0, bins, right - confidence).abs()
    return {
        "loss": F.nll_loss(probabilities.log(), targets).item(),
        "accuracy": right.mean().item(),
        "ece": gaps.sum().item() / len(targets),
    }


def measure() -> dict:
    """Return the differences by depth, and what passes gain on digits that are shifted."""
    splits = digits()
    model = fit(perceptron(splits), splits, rules(2))
    batch = everything(splits.test)
    by_shift, by_passes = {}, {}
    for pixels in SHIFTS:
        x = shifted(batch.inputs["x"], pixels)
        with torch.no_grad():
            one = quality(model(x).softmax(1), batch.targets)
        many = {count: quality(predicted(model, x, count)[1], batch.targets) for count in PASSES}
        by_shift[pixels] = (one, many[max(PASSES)])
        by_passes[pixels] = [(count, many[count]["loss"] - one["loss"]) for count in PASSES]
    depths = {depth: differences(depth) for depth in DEPTHS}
    return {"linear": linear_difference(), "depths": depths, "shifts": by_shift, "passes": by_passes}


def table(found: dict) -> str:
    """Return the differences, and what 50 passes gain."""
    lines = [
        "| hidden layers | logits | softmax of the mean logits | mean of the softmax |",
        "|---|---|---|---|",
        f"| 0, all masks | {found['linear']:.0e} | | |",
    ]
    for depth, numbers in found["depths"].items():
        lines.append(f"| {depth} | {' | '.join(f'{number:.3f}' for number in numbers.values())} |")
    lines += [
        "",
        "| shift | accuracy, one pass | 50 passes | loss, one pass | 50 | calibration error, one | 50 |",
        "|---|---|---|---|---|---|---|",
    ]
    for pixels, (one, many) in found["shifts"].items():
        cells = [f"{value:.3f}" for key in ("accuracy", "loss", "ece") for value in (one[key], many[key])]
        lines.append(f"| {pixels} | {' | '.join(cells)} |")
    lines += [
        "",
        f"| shift | {' | '.join(f'{count} passes' for count in PASSES)} |",
        "|---" * (len(PASSES) + 1) + "|",
    ]
    for pixels, gains in found["passes"].items():
        lines.append(f"| {pixels} | {' | '.join(f'{gain:+.3f}' for _, gain in gains)} |")
    return "\n".join(lines)


def figure(found: dict) -> str:
    """Return the differences over depth, and calibration errors over the shift."""
    names = {"geometric": "softmax of mean logits", "arithmetic": "mean of softmax"}
    away = {name: [(depth, d[key]) for depth, d in found["depths"].items()] for key, name in names.items()}
    errors = {
        name: [(pixels, pair[at]["ece"]) for pixels, pair in found["shifts"].items()]
        for at, name in enumerate(("one pass", "50 passes"))
    }
    return charts(
        chart(0, away, ("hidden layers", "moved probability")),
        chart(360, errors, ("pixels of shift", "calibration error")),
        width=360,
    )
