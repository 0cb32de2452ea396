"""Dropout before batch normalisation: what the norm learns of the variance, and three ways out."""

import torch
from drawing import chart, charts
from pages.digits import digits, everything, fit, scores
from torch import Tensor, nn

import transformer_dropout as td
from transformer_dropout.runs.task import Splits

SEEDS = (0, 1, 2)
UNITS = 128
NORMS = ("norm2", "norm3")


class UniformNoise(nn.Module):
    """Multiply by ``1 + u``, ``u`` uniform in [-width, width], in training (the Uout of Li et al. 2019)."""

    def __init__(self, width: float) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.width * (2 * torch.rand_like(x) - 1)) if self.training else x


class Network(nn.Sequential):
    """Linear, norm, ReLU three times over, with a noise behind some of them, and a linear layer."""

    def __init__(self, noise: dict[int, nn.Module]) -> None:
        super().__init__(nn.Flatten())
        for at, width in ((1, 64), (2, UNITS), (3, UNITS)):
            self.add_module(f"linear{at}", nn.Linear(width, UNITS))
            self.add_module(f"norm{at}", nn.BatchNorm1d(UNITS))
            self.add_module(f"relu{at}", nn.ReLU())
            if at in noise:
                self.add_module(f"noise{at}", noise[at])
        self.add_module("head", nn.Linear(UNITS, 10))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def network(noise: dict[int, nn.Module], seed: int) -> nn.Module:
    """Return a new network drawn from a seed."""
    torch.manual_seed(seed)
    return Network(noise)


def arms() -> dict[str, dict[int, nn.Module]]:
    """Return the noises of each arm by the block that they follow."""
    return {
        "none": {},
        "dropout before the norms": {at: td.Dropout(p=0.5) for at in (1, 2, 3)},
        "dropout after the last norm": {3: td.Dropout(p=0.5)},
        "uniform noise": {at: UniformNoise(0.5) for at in (1, 2, 3)},
    }


def inputs_of(model: nn.Module, norm: str, x: Tensor) -> Tensor:
    """Return what a norm is given."""
    seen = []
    hook = model.get_submodule(norm).register_forward_hook(lambda module, given, out: seen.append(given[0]))
    with torch.no_grad():
        model(x)
    hook.remove()
    return seen[0]


def variances(model: nn.Module, norm: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variances of a norm's channels: of its inputs in evaluation, and as it has learned them."""
    return inputs_of(model.eval(), norm, x).var(0), model.get_submodule(norm).running_var


def ratio(model: nn.Module, norm: str, x: Tensor) -> float:
    """Return the learned variance over that in evaluation, mean over channels."""
    evaluated, learned = variances(model, norm, x)
    return (learned / evaluated).mean().item()


def measured_anew(model: nn.Module, x: Tensor) -> nn.Module:
    """Measure every norm's statistics once more, on the training images with dropout off."""
    for norm in ("norm1", *NORMS):
        module = model.get_submodule(norm)
        seen = inputs_of(model.eval(), norm, x)
        module.running_mean.copy_(seen.mean(0))
        module.running_var.copy_(seen.var(0))
    return model


def described(models: list[nn.Module], splits: Splits) -> dict:
    """Return the means over seeds of an arm's variance ratios and scores."""
    x, batch = everything(splits.train).inputs["x"], everything(splits.validation)
    ratios = [[ratio(model, norm, x) for norm in NORMS] for model in models]
    pairs = torch.stack(variances(models[0], NORMS[-1], x), 1)[:100]
    found = [scores(model, batch) for model in models]
    return {
        "ratios": [sum(column) / len(models) for column in zip(*ratios, strict=True)],
        "losses": [score["loss"] for score in found],
        "accuracy": sum(score["accuracy"] for score in found) / len(models),
        "channels": [tuple(pair) for pair in pairs.tolist()],
    }


def measure() -> dict:
    """Return what each arm's norms have learned and how it does; also what the audit finds."""
    splits = digits()
    x = everything(splits.train).inputs["x"]
    found = {}
    for name in arms():
        models = [fit(network(arms()[name], seed), splits, seed=seed, steps=300) for seed in SEEDS]
        found[name] = described(models, splits)
        if name == "dropout before the norms":
            audited = td.audit(models[0], x[:32])
            finds = [
                finding.site for finding in audited.findings if finding.code == "dropout-before-batch-norm"
            ]
            found["... measured anew"] = described([measured_anew(model, x) for model in models], splits)
    return {"arms": found, "audit": finds}


def table(found: dict) -> str:
    """Return a line for each arm."""
    lines = [
        f"| noise | variance ratio, {' | '.join(NORMS)} | validation loss | by seed | accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for name, arm in found["arms"].items():
        ratios = " | ".join(f"{ratio:.2f}" for ratio in arm["ratios"])
        by_seed = ", ".join(f"{loss:.3f}" for loss in arm["losses"])
        mean = sum(arm["losses"]) / len(arm["losses"])
        lines.append(f"| {name} | {ratios} | {mean:.3f} | {by_seed} | {arm['accuracy']:.3f} |")
    lines += ["", f"`td.audit` finds `dropout-before-batch-norm` at: {', '.join(found['audit'])}."]
    return "\n".join(lines)


def figure(found: dict) -> str:
    """Return the variance that each channel of the last norm has learned over that in evaluation."""
    names = ("dropout before the norms", "dropout after the last norm")
    channels = {name: found["arms"][name]["channels"] for name in names}
    return charts(
        chart(0, channels, ("variance in evaluation", f"learned by {NORMS[-1]}"), dots=True), width=390
    )
