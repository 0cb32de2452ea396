import numpy as np
import pytest
import torch

import transformer_dropout as td
from transformer_dropout.runs.task import Task
from transformer_dropout.tasks.regression import Regression
from transformer_dropout.tasks.regression.data import TableData
from transformer_dropout.tasks.regression.task import RegressionConfig

TASK = Regression()
LINEAR = RegressionConfig(hidden=())


def test_it_keeps_the_protocol():
    assert isinstance(TASK, Task)
    assert [(metric.name, metric.better) for metric in TASK.metrics] == [("loss", "lower"), ("r2", "higher")]


def test_a_linear_model_reaches_the_least_squares(train):
    found = train(TASK, LINEAR, TableData(), steps=1500, lr=3e-3)
    rows = found.splits.train
    solution = torch.linalg.lstsq(rows.inputs.double(), rows.targets.double()[:, None]).solution
    best = (rows.inputs.double() @ solution)[:, 0].sub(rows.targets).square().mean()
    with torch.no_grad():
        reached = TASK.loss(found.model, TASK.batch(rows, np.arange(len(rows))))
    assert float(reached) == pytest.approx(float(best), rel=0.01)


def test_r2_is_the_share_of_the_splits_variance(train, score):
    found = train(TASK, RegressionConfig(hidden=(8,)), TableData(), steps=50)
    split = found.splits.validation
    with torch.no_grad():
        guess = found.model(split.inputs)[:, 0]
    expected = (
        1 - (guess - split.targets).square().sum() / (split.targets - split.targets.mean()).square().sum()
    )
    assert score(TASK, found.model, split, batch=7)["r2"] == pytest.approx(float(expected), abs=1e-5)
    assert found.after["r2"] > 0.2


def test_a_perceptron_fits_the_noise(train, score):
    found = train(TASK, RegressionConfig(), TableData(), steps=600, lr=3e-3)
    assert score(TASK, found.model, found.splits.train)["loss"] < 0.2
    assert found.after["loss"] > 0.5


def test_its_arms_are_at_least_five_and_share_what_they_do_not_compare():
    arms = TASK.default_arms({}, {})
    assert len(arms) >= 5 and len({arm["name"] for arm in arms}) == len(arms)
    for arm in arms:
        td.Recipe.from_data(arm["recipe"])
        for key in ("steps", "batch", "lr", "min_lr", "eval_every"):
            assert arm["training"][key] == arms[0]["training"][key]
