"""A task of your own: the next day of a noisy series from the days before it.

dropout compare --task my_task.py
dropout compare --task my_task.py --set model.history=56 --set data.noise=1 --seeds 5
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from transformer_dropout.runs.task import Batch, Metric, Splits


@dataclass(frozen=True, kw_only=True)
class Series:
    """The section `data` of a run config: days to learn from, and how much of each is chance."""

    days: int = 500
    noise: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Network:
    """The section `model`: days that it looks back, and its hidden units."""

    history: int = 28
    hidden: int = 128


class Forecast:
    item = "day"
    metrics = (Metric(name="loss", unit="squared error"), Metric(name="gain", better="higher"))
    Model, Data = Network, Series

    def prepare(self, model, data, cache):
        random, days = np.random.default_rng(0), np.arange(data.days + 400)
        series = np.sin(days / 7 * 2 * np.pi) + np.sin(days / 30 * 2 * np.pi)
        series = torch.tensor(series + data.noise * random.standard_normal(len(days)), dtype=torch.float32)
        # Windows of a history and the day behind it; validation and test come later in time.
        ends = {"train": data.days, "validation": data.days + 200, "test": data.days + 400}
        parts, start = {}, 0
        for name, end in ends.items():
            parts[name] = series[start:end].unfold(0, model.history + 1, 1)
            start = end
        digests = {n: {"sha256": hashlib.sha256(p.numpy().tobytes()).hexdigest()} for n, p in parts.items()}
        return Splits(**parts, manifest={"source": "two seasons and noise", **digests})

    def build(self, model, splits):
        return nn.Sequential(
            nn.Linear(model.history, model.hidden),
            nn.ReLU(),
            nn.Linear(model.hidden, model.hidden),
            nn.ReLU(),
            nn.Linear(model.hidden, 1),
        )

    def batch(self, split, indices):
        windows = split[torch.as_tensor(np.asarray(indices))]
        return Batch(inputs={"input": windows[:, :-1]}, targets=windows[:, -1:], items=len(windows))

    def loss(self, model, batch):
        return (model(**batch.inputs) - batch.targets).square().mean()

    def score(self, model, batch):
        yesterday = batch.inputs["input"][:, -1:]
        errors = {"loss": model(**batch.inputs), "yesterday": yesterday}
        return {name: (guess - batch.targets).square().sum() for name, guess in errors.items()}

    def summarize(self, means):  # the share of the error that 'as yesterday' makes and the model does not
        return {"loss": means["loss"], "gain": 1 - means["loss"] / means["yesterday"]}

    def default_arms(self, model, data):
        training = {"steps": 400, "batch": 32, "lr": 3e-3, "eval_every": 50}
        half = [{"select": "mlp_hidden", "layer": "Dropout", "p": 0.5}]
        arms = {"none": {}, "dropout": {"recipe": half}, "L2": {"training": training | {"l2": 0.01}}}
        return [{"name": name, "training": training} | arm for name, arm in arms.items()]
