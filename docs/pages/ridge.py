"""Dropout and noise at the input of a linear regression, beside the penalties that they are."""

import torch
from drawing import chart, charts
from torch import Tensor, nn

import transformer_dropout as td
from transformer_dropout.tasks.regression import Regression

RATES = (0.1, 0.2, 0.5)
STDS = (0.25, 0.5, 1.0)
SMALL = (0.01, 0.02, 0.05, 0.1, 0.2)


def table_of_diabetes() -> tuple[Tensor, Tensor]:
    """Return columns of mean 0 whose variances go from 1/4 to 4, and a standardised target."""
    task = Regression()
    rows = task.prepare(task.Model(), task.Data(), None).train
    scales = 2.0 ** torch.linspace(-1, 1, rows.inputs.shape[1], dtype=torch.float64)
    return rows.inputs.double() * scales, rows.targets.double()


def ridge(x: Tensor, y: Tensor, penalty: Tensor) -> Tensor:
    """Return the minimum of ``mean (y - x w)^2 + sum_j penalty_j w_j^2``."""
    return torch.linalg.solve(x.T @ x / len(x) + penalty.diag(), x.T @ y / len(x))


def trained(x: Tensor, y: Tensor, noise: nn.Module, steps: int = 4000) -> Tensor:
    """Return the weights that gradient descent through a noise finds: the mean over its last two thirds."""
    torch.manual_seed(0)
    linear = nn.Linear(x.shape[1], 1, bias=False, dtype=x.dtype)
    total = torch.zeros(x.shape[1], dtype=x.dtype)
    for step in range(steps):
        loss = (linear(noise.train()(x))[:, 0] - y).square().mean()
        (gradient,) = torch.autograd.grad(loss, linear.weight)
        linear.weight.data.sub_(0.02 * gradient)
        if step >= steps // 3:
            total += linear.weight.data[0]
    return total / (steps - steps // 3)


def distance(one: Tensor, other: Tensor) -> float:
    """Return how far two weight vectors lie apart, as a share of the second."""
    return ((one - other).norm() / other.norm()).item()


def small_noise(draws: int = 200) -> dict[float, tuple[float, float]]:
    """Return, for each standard deviation, what input noise adds to a perceptron's loss and Tikhonov's term.

    The perceptron is smooth and fits its rows: the term's remainder is a product with the residuals.
    """
    x, y = table_of_diabetes()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(x.shape[1], 32), nn.Tanh(), nn.Linear(32, 1)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(1500):
        optimizer.zero_grad()
        (model(x)[:, 0] - y).square().mean().backward()
        optimizer.step()
    inputs = x.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(model(inputs).sum(), inputs)
    found = {}
    with torch.no_grad():
        clean = (model(x)[:, 0] - y).square().mean()
        for std in SMALL:
            noise = std * torch.randn(draws, *x.shape, dtype=x.dtype)
            noise = torch.cat([noise, -noise])
            noisy = (model((x + noise).flatten(0, 1)).view(len(noise), -1) - y).square().mean()
            found[std] = ((noisy - clean).item(), (std**2 * slopes.square().sum(1).mean()).item())
    return found


def measure() -> dict:
    """Return, for dropout and for noise, distances to the closed forms, and what small noise adds."""
    x, y = table_of_diabetes()
    variances, none = x.square().mean(0), torch.zeros(x.shape[1], dtype=x.dtype)
    plain = ridge(x, y, none)
    rows, shown = [], {}
    for p in RATES:
        closed, weights = ridge(x, y, p / (1 - p) * variances), trained(x, y, td.Dropout(p=p))
        equal = ridge(x, y, (p / (1 - p) * variances.mean()).expand_as(none))
        rows.append((f"Dropout p = {p}", closed, weights, equal))
    for std in STDS:
        closed, weights = ridge(x, y, std**2 + none), trained(x, y, td.GaussianNoise(std))
        rows.append((f"GaussianNoise std = {std}", closed, weights, ridge(x, y, std**2 * variances)))
    for name, closed, weights, _ in rows:
        shown[name] = list(zip(closed.tolist(), weights.tolist(), strict=True))
    distances = {
        name: (distance(weights, closed), distance(weights, other), distance(weights, plain))
        for name, closed, weights, other in rows
    }
    return {"distances": distances, "weights": shown, "small": small_noise()}


def table(found: dict) -> str:
    """Return the distances, and what noise adds to a perceptron's loss."""
    lines = [
        "| at the input | to its own closed form | to the other penalty | to least squares |",
        "|---|---|---|---|",
    ]
    for name, numbers in found["distances"].items():
        lines.append(f"| {name} | {' | '.join(f'{number:.3f}' for number in numbers)} |")
    lines += ["", "| std of the noise | it adds to the loss | Tikhonov's term |", "|---|---|---|"]
    lines += [f"| {std} | {added:.2g} | {term:.2g} |" for std, (added, term) in found["small"].items()]
    return "\n".join(lines)


def figure(found: dict) -> str:
    """Return trained weights over the closed form's, and the added loss over the noise."""
    chosen = {name: found["weights"][name] for name in ("Dropout p = 0.5", "GaussianNoise std = 1.0")}
    added = {
        "measured": [(std, pair[0]) for std, pair in found["small"].items()],
        "Tikhonov": [(std, pair[1]) for std, pair in found["small"].items()],
    }
    return charts(
        chart(0, chosen, ("closed form", "trained weight"), dots=True),
        chart(360, added, ("std", "added to the loss")),
        width=360,
    )
