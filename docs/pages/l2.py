"""L2 as ``weight * sum w^2 / 2`` on matrices, beside the forms of textbooks and beside weight decay."""

from collections.abc import Callable, Iterable

import torch
from drawing import chart, charts
from torch import Tensor, nn

import transformer_dropout as td
from transformer_dropout.tasks.regression import Regression

LAMBDA = 0.3
WEIGHTS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0)
MEAN = 3.0


def rows() -> tuple[Tensor, Tensor]:
    """Return standardised columns, and a target of mean 3."""
    task = Regression()
    train = task.prepare(task.Model(), task.Data(), None).train
    x, y = train.inputs.double(), train.targets.double()
    return (x - x.mean(0)) / x.std(0), y - y.mean() + MEAN


def linear(columns: int) -> nn.Linear:
    """Return the same start every time."""
    torch.manual_seed(0)
    return nn.Linear(columns, 1, dtype=torch.float64)


def fitted(penalty: Callable[[nn.Linear], Tensor], x: Tensor, y: Tensor, steps: int = 200) -> nn.Linear:
    """Return where full gradient descent takes ``mean of the squared errors / 2 + penalty``."""
    model = linear(x.shape[1])
    for _ in range(steps):
        loss = (model(x)[:, 0] - y).square().mean() / 2 + penalty(model)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.data.sub_(0.1 * gradient)
    return model


def squares(parameters: Iterable[Tensor]) -> Tensor:
    """Return the sum of the squares, as textbooks write it."""
    return torch.stack([parameter.square().sum() for parameter in parameters]).sum()


def forms(n: int) -> dict[str, tuple[Callable[[nn.Linear], Tensor], float]]:
    """Return each form as a textbook writes it, and the weight with which `td.L2` is said to equal it."""
    return {
        "mean loss + lambda / 2 * sum w^2": (lambda m: LAMBDA / 2 * squares([m.weight]), LAMBDA),
        "mean loss + lambda * sum w^2": (lambda m: LAMBDA * squares([m.weight]), 2 * LAMBDA),
        "mean loss + lambda / (2 n) * sum w^2": (
            lambda m: LAMBDA / (2 * n) * squares([m.weight]),
            LAMBDA / n,
        ),
        # A sum over n examples, divided by n to be the same problem.
        "sum of losses + lambda / 2 * sum w^2": (lambda m: LAMBDA / 2 * squares([m.weight]) / n, LAMBDA / n),
    }


def apart(one: nn.Linear, other: nn.Linear) -> float:
    """Return the largest difference of two models' weights."""
    return (one.weight - other.weight).abs().max().item()


def beside_decay(make: Callable[..., torch.optim.Optimizer], x: Tensor, y: Tensor) -> float:
    """Return how far an optimizer with L2 in the loss ends from the same one with its own weight decay."""
    ends = []
    for inside in (True, False):
        model = linear(x.shape[1])
        decay = {"params": [model.weight], "weight_decay": 0.0 if inside else LAMBDA}
        optimizer = make([decay, {"params": [model.bias], "weight_decay": 0.0}])
        penalty = td.L2(model, weight=LAMBDA)
        for _ in range(200):
            loss = (model(x)[:, 0] - y).square().mean() / 2
            optimizer.zero_grad()
            (loss + penalty() if inside else loss).backward()
            optimizer.step()
        ends.append(model)
    return apart(*ends)


def measure() -> dict:
    """Return how near each form comes to its equal, the optimizers, and what decaying the bias does."""
    x, y = rows()
    converted = {
        name: (weight, apart(fitted(form, x, y), fitted(lambda m, w=weight: td.L2(m, weight=w)(), x, y)))
        for name, (form, weight) in forms(len(x)).items()
    }
    means = {"matrices alone": [], "all parameters": []}
    for weight in WEIGHTS:
        matrices = fitted(lambda m, w=weight: td.L2(m, weight=w)(), x, y)
        everything = fitted(lambda m, w=weight: td.L2(m.parameters(), weight=w)(), x, y)
        for name, model in zip(means, (matrices, everything), strict=True):
            means[name].append((weight, model(x).mean().item()))
    textbook = fitted(lambda m: LAMBDA / 2 * squares(m.parameters()), x, y)
    whole = fitted(lambda m: td.L2(m.parameters(), weight=LAMBDA)(), x, y)
    return {
        "converted": converted,
        "all parameters": (textbook.bias - whole.bias).abs().item() + apart(textbook, whole),
        "optimizers": {
            "SGD": beside_decay(lambda groups: torch.optim.SGD(groups, lr=0.1), x, y),
            "AdamW": beside_decay(lambda groups: torch.optim.AdamW(groups, lr=0.02), x, y),
        },
        "means": means,
    }


def table(found: dict) -> str:
    """Return the conversions, and what decaying the bias does to the mean prediction."""
    lines = [
        "| textbook, lambda = 0.3, on the matrix | `td.L2(model, weight=...)` | apart |",
        "|---|---|---|",
    ]
    for name, (weight, difference) in found["converted"].items():
        lines.append(f"| {name} | {weight:.5f} | {'below 1e-9' if difference < 1e-9 else difference} |")
    lines += ["", "| weight | mean prediction, matrix alone | all parameters |", "|---|---|---|"]
    for (weight, kept), (_, shrunk) in zip(*found["means"].values(), strict=True):
        lines.append(f"| {weight} | {kept:.2f} | {shrunk:.2f} |")
    ends = found["optimizers"]
    lines += [
        "",
        f"L2 in the loss and the optimizer's own decay end {ends['SGD']:.2f} apart under SGD, and "
        f"{ends['AdamW']:.2f} apart under Adam and AdamW.",
    ]
    return "\n".join(lines)


def figure(found: dict) -> str:
    """Return the mean prediction over the weight."""
    return charts(chart(0, found["means"], ("weight", "mean prediction; the target's is 3")), width=340)
