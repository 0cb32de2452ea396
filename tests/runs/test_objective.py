"""What a training step minimises, on a task of a few lines."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import transformer_dropout as td
from transformer_dropout.runs.objective import Objective, doubled, place_experts
from transformer_dropout.runs.task import Batch, Splits
from transformer_dropout.runs.training_config import ExpertsConfig, TrainingConfig
from transformer_dropout.surgery.mixture_of_experts import MixtureOfExperts
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

CLASSES, NOTHING = 5, Splits(train=None, validation=None)


def logits(model, batch):
    return model(batch.inputs["x"]), batch.targets


TASK = SimpleNamespace(logits=logits, loss=lambda model, batch: model(batch.inputs["x"]).mean())


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Dropout(0.5), nn.Linear(4, CLASSES))


def batch_of(examples=6, tokens=3):
    torch.manual_seed(1)
    targets = torch.randint(CLASSES, (examples, tokens))
    targets[0, 1] = targets[2, 0] = -100
    inputs = {"x": torch.randn(examples, tokens, 4), "scale": torch.tensor(2.0), "name": "a"}
    return Batch(inputs=inputs, targets=targets, items=examples * tokens - 2)


def objective(model, **words):
    return Objective(TASK, TrainingConfig(**words), model, NOTHING)


def test_without_words_it_is_the_loss_of_the_task(network):
    batch, loss = batch_of(), objective(network.eval())
    assert loss(network, batch) == TASK.loss(network, batch)
    assert (loss.penalty(), loss.weight) == (0.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_smoothed_targets_are_spread_over_all_classes_and_those_that_do_not_count_left_out(network, dtype):
    batch, network = batch_of(), network.to(dtype).eval()
    batch.inputs["x"] = batch.inputs["x"].to(dtype)
    found = objective(network, label_smoothing=0.2)(network, batch)
    log_p = network(batch.inputs["x"]).float().log_softmax(-1)
    real = batch.targets != -100
    of_target = log_p.gather(-1, batch.targets.clamp_min(0)[..., None])[..., 0]
    expected = -(0.8 * of_target + 0.2 * log_p.mean(-1))[real].mean()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_a_batch_twice_over_makes_both_passes(network):
    batch, loss = batch_of(), objective(network, rdrop="0,4")
    loss.set_progress(0.5)
    assert loss.weight == 2.0
    torch.manual_seed(3)
    found = loss(network, batch)
    torch.manual_seed(3)
    first, second = network(torch.cat([batch.inputs["x"]] * 2)).chunk(2)
    assert not first.equal(second)
    torch.testing.assert_close(found, td.rdrop_loss(first, second, batch.targets, 2.0) / 2)


def test_of_a_batch_twice_over_only_what_has_examples_is_doubled():
    batch = batch_of()
    twice = doubled(batch)
    assert twice.inputs["x"].equal(torch.cat([batch.inputs["x"]] * 2))
    assert (twice.inputs["scale"], twice.inputs["name"]) == (batch.inputs["scale"], "a")
    assert twice.targets.equal(torch.cat([batch.targets] * 2))
    assert twice.items == 2 * batch.items
    assert list(twice.inputs) == list(batch.inputs)


def test_experts_are_placed_where_a_run_has_them_and_nowhere_else():
    model = Decoder(19, DecoderConfig(width=8, heads=2, blocks=2, context=6))
    plain = [block.mlp for block in model.blocks]
    place_experts(model, TrainingConfig())
    assert [block.mlp for block in model.blocks] == plain
    experts = ExpertsConfig(experts=3, top_k=2, select="blocks.1.mlp", weight=0.5)
    place_experts(model, TrainingConfig(experts=experts))
    first, second = (block.mlp for block in model.blocks)
    assert first is plain[0] and isinstance(second, MixtureOfExperts)
    assert (len(second.expand), second.top_k) == (3, 2)
    # The weight of their balance is the training's.
    loss = objective(model, experts=experts)
    model(torch.zeros(1, 2, dtype=torch.long))
    balance = second.balance
    assert loss.penalty() == 0.5 * balance != 0
