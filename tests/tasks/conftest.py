"""What the tests of tasks share: a loop of a few lines over the parts that the protocol asks for."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import transformer_dropout as td


def trained(task, model, data, *, recipe=(), steps=60, lr=1e-2, seed=0):
    """Train a task for some steps of 32 examples; return model, splits and scores before and after."""
    splits = task.prepare(model, data, None)
    torch.manual_seed(seed)
    built = task.build(model, splits)
    regularization = td.regularize_(built, td.Recipe.from_data(recipe)) if recipe else None
    optimizer = torch.optim.AdamW(built.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    before = scores(task, built, splits.validation)
    for _ in range(steps):
        chosen = torch.randint(len(splits.train), (32,), generator=generator).numpy()
        batch = task.batch(splits.train, chosen)
        if hasattr(task, "augment"):
            batch = task.augment(data, batch, generator)
        loss = task.loss(built.train(), batch)
        if regularization is not None:
            loss = loss + regularization.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = scores(task, built, splits.validation)
    return SimpleNamespace(model=built, splits=splits, before=before, after=after)


def scores(task, model, split, batch=64):
    """Return the metrics of a split, added up over batches as a run does."""
    sums, items = {}, 0
    with torch.no_grad():
        for start in range(0, len(split), batch):
            part = task.batch(split, np.arange(start, min(start + batch, len(split))))
            items += part.items
            for name, value in task.score(model.eval(), part).items():
                sums[name] = sums.get(name, 0.0) + float(value)
    means = {name: value / items for name, value in sums.items()}
    return task.summarize(means) if hasattr(task, "summarize") else means


@pytest.fixture
def train():
    return trained


@pytest.fixture
def score():
    return scores
