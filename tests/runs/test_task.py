"""What a run knows of a task: its metrics and its batches."""

import torch

from transformer_dropout.runs.task import ACCURACY, LOSS, Batch


def test_a_batch_goes_to_a_device_with_all_its_tensors():
    batch = Batch(inputs={"x": torch.ones(2), "flag": True}, targets=torch.zeros(2), items=7)
    moved = batch.to(torch.device("meta"))
    assert (moved.inputs["x"].device.type, moved.targets.device.type) == ("meta", "meta")
    assert (moved.inputs["flag"], moved.items, batch.targets.device.type) == (True, 7, "cpu")


def test_a_loss_is_better_when_lower_and_an_accuracy_when_higher():
    assert (LOSS.better, LOSS.unit, ACCURACY.better, ACCURACY.unit) == ("lower", "nats", "higher", "share")
