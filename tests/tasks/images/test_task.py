import math

import numpy as np
import pytest
import torch

import transformer_dropout as td
from transformer_dropout.runs.task import Task
from transformer_dropout.tasks.images import Images
from transformer_dropout.tasks.images.augment import ImageAugment
from transformer_dropout.tasks.images.data import ImageData
from transformer_dropout.tasks.images.task import MLPConfig

TASK = Images()


@pytest.fixture(scope="module")
def splits():
    return TASK.prepare(MLPConfig(), ImageData(train_images=100), None)


def test_it_keeps_the_protocol():
    assert isinstance(TASK, Task)
    assert [metric.name for metric in TASK.metrics] == ["loss", "accuracy"]


def test_the_model_is_that_of_the_sources(splits):
    model = TASK.build(TASK.Model(), splits)
    widths = [part.weight.shape for part in model.layers if isinstance(part, torch.nn.Linear)]
    assert widths == [(256, 64), (256, 256), (10, 256)]


def test_it_is_built_without_data_on_the_meta_device(splits):
    with torch.device("meta"):
        model = TASK.build(TASK.Model(), splits)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_the_sums_of_the_scores_are_the_loss_and_the_right_answers(splits):
    torch.manual_seed(0)
    model, batch = TASK.build(TASK.Model(), splits).eval(), TASK.batch(splits.validation, np.arange(50))
    with torch.no_grad():
        found = TASK.score(model, batch)
    probabilities = model(**batch.inputs).softmax(1).detach()
    expected = [-math.log(row[label]) for row, label in zip(probabilities, batch.targets, strict=True)]
    assert float(found["loss"]) == pytest.approx(sum(expected), rel=1e-5)
    assert float(TASK.loss(model, batch).detach()) == pytest.approx(sum(expected) / 50, rel=1e-5)
    assert int(found["accuracy"]) == int((probabilities.argmax(1) == batch.targets).sum())
    logits, targets = TASK.logits(model, batch)
    assert logits.shape == (50, 10) and torch.equal(targets, batch.targets)


def test_a_batch_has_the_images_asked_for_between_zero_and_one(splits):
    batch = TASK.batch(splits.train, [4, 2, 4])
    assert batch.items == 3 and torch.equal(batch.targets, splits.train.labels[[4, 2, 4]])
    torch.testing.assert_close(batch.inputs["x"] * 255, splits.train.images[[4, 2, 4]].float())


def test_training_batches_are_changed_as_the_config_says(splits):
    data, batch = ImageData(augment=ImageAugment(shift=1)), TASK.batch(splits.train, np.arange(20))
    changed = TASK.augment(data, batch, torch.Generator().manual_seed(0))
    assert not torch.equal(changed.inputs["x"], batch.inputs["x"])
    assert torch.equal(changed.targets, batch.targets) and changed.items == 20


def test_it_learns_the_digits(train):
    found = train(TASK, MLPConfig(), ImageData(), steps=150, lr=3e-3)
    assert found.before["accuracy"] < 0.4 and found.before["loss"] > 2
    assert found.after["accuracy"] > 0.9 and found.after["loss"] < 0.4


def test_it_learns_a_folder_of_idx_files(train, idx_folder):
    data = ImageData(source=str(idx_folder()), augment=ImageAugment(flip=True))
    found = train(TASK, MLPConfig(hidden=(32,)), data, steps=80, lr=3e-3)
    assert found.after["loss"] < found.before["loss"]


def test_few_images_are_learned_by_heart(train, score):
    found = train(TASK, MLPConfig(), ImageData(train_images=60), steps=150, lr=3e-3)
    assert score(TASK, found.model, found.splits.train)["loss"] < 0.01
    assert found.after["loss"] > 0.3


def test_its_arms_are_at_least_five_and_differ_in_one_thing():
    arms = TASK.default_arms({}, {})
    assert len(arms) >= 5 and len({arm["name"] for arm in arms}) == len(arms)
    for arm in arms:
        td.Recipe.from_data(arm["recipe"])
        shared = {key: value for key, value in arm["training"].items() if key != "weight_decay"}
        assert shared == {k: v for k, v in arms[0]["training"].items() if k != "weight_decay"}
        changed = [bool(arm["recipe"]), bool(arm["data"]["augment"]), arm["training"]["weight_decay"] != 0.01]
        assert sum(changed) == (arm["name"] != "none")


@pytest.mark.parametrize("hidden", [(0,), (256, -1)])
def test_a_layer_without_units_is_refused(hidden):
    with pytest.raises(td.InputError, match=r"model\.hidden"):
        MLPConfig(hidden=hidden)
