"""What hidden units learn with and without dropout, in numbers and pictures."""

import torch
from drawing import CELL, cells, chart, page, text
from pages.digits import digits, everything, fit, perceptron, scores
from torch import Tensor, nn

import transformer_dropout as td
from transformer_dropout.runs.task import Batch

UNITS = 100
SEEDS = (0, 1)
ARMS = {"no dropout": 0.0, "dropout p = 0.5": 0.5}
LOST = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
SHOWN = 10


def hidden_of(model: nn.Module, x: Tensor) -> Tensor:
    """Return the hidden units' values."""
    with torch.no_grad():
        return model.layers[1](model.layers[0](x.flatten(1)))


def contributions(model: nn.Module, batch: Batch) -> Tensor:
    """Return what each unit adds to the logit of the right class, above its mean over the classes."""
    weights = model.layers[2].weight.detach()
    return hidden_of(model, batch.inputs["x"]) * (weights - weights.mean(0))[batch.targets]


def loss_without(model: nn.Module, batch: Batch, share: float, draws: int = 40) -> float:
    """Return the loss when a share of the hidden units is lost and the rest scaled up, mean over draws."""
    torch.manual_seed(0)
    hidden = hidden_of(model, batch.inputs["x"])
    losses = torch.zeros(draws)
    for draw in range(draws):
        kept = (torch.rand(hidden.shape[1]) >= share).float() / (1 - share)
        with torch.no_grad():
            losses[draw] = nn.functional.cross_entropy(model.layers[2](hidden * kept), batch.targets)
    return losses.mean().item()


def correlation(hidden: Tensor) -> float:
    """Return the mean absolute correlation of two units, over those that ever vary."""
    found = torch.corrcoef(hidden[:, hidden.std(0) > 1e-6].T).abs()
    count = len(found)
    return ((found.sum() - count) / (count * (count - 1))).item()


def described(model: nn.Module, batch: Batch) -> dict[str, float]:
    """Return what a model's hidden units do on some images."""
    said = contributions(model, batch)
    return {
        "against": (said < 0).float().mean().item(),
        "cancelled": (said.abs().sum(1) / said.sum(1).abs()).median().item(),
        "correlation": correlation(hidden_of(model, batch.inputs["x"])),
        "loss": scores(model, batch)["loss"],
        "half lost": loss_without(model, batch, 0.5),
    }


def measure() -> dict:
    """Return, for each arm, means over seeds, and of its first seed what is pictured."""
    splits = digits(1000)
    batch = everything(splits.validation)
    found = {}
    for name, p in ARMS.items():
        rules = [td.Rule("classifier", td.Dropout, p=p)] if p else []
        models = [
            fit(perceptron(splits, (UNITS,), seed), splits, rules, steps=1500, seed=seed) for seed in SEEDS
        ]
        each = [described(model, batch) for model in models]
        first = models[0]
        strength = first.layers[2].weight.detach().norm(dim=0)
        pictures = first.layers[0].weight.detach()[strength.argsort(descending=True)[:SHOWN]].view(-1, 8, 8)
        found[name] = {
            "means": {key: sum(one[key] for one in each) / len(each) for key in each[0]},
            "pictures": pictures / pictures.abs().amax((1, 2), keepdim=True),
            "sorted": contributions(first, batch).sort(1).values.mean(0).tolist(),
            "lost": [(share, loss_without(first, batch, share)) for share in LOST],
        }
    return found


def table(found: dict) -> str:
    """Return a line for each arm."""
    lines = [
        "| trained with | against the right class | said over left | correlation | loss | half lost |",
        "|---|---|---|---|---|---|",
    ]
    for name, arm in found.items():
        lines.append(f"| {name} | {' | '.join(f'{mean:.3f}' for mean in arm['means'].values())} |")
    return "\n".join(lines)


def figure(found: dict) -> str:
    """Return what units say, what losing them costs, and the weights of the strongest ones."""
    said = {name: list(enumerate(arm["sorted"], start=1)) for name, arm in found.items()}
    lost = {name: arm["lost"] for name, arm in found.items()}
    parts = [
        *chart(0, said, ("unit, sorted for each image", "added to the right class")),
        *chart(360, lost, ("share of units lost", "validation loss")),
    ]
    for row, (name, arm) in enumerate(found.items()):
        y = 220 + row * (8 * CELL + 30)
        parts.append(text(8, y, f"{name}: weights from the 8 x 8 pixels to the strongest hidden units"))
        parts += [cells(8 + at * (8 * CELL + 12), y + 8, w, 0.0) for at, w in enumerate(arm["pictures"])]
    return page(720, 220 + 2 * (8 * CELL + 30), parts)
