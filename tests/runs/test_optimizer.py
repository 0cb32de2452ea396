"""What decays and what does not, and the learning rate by hand."""

from dataclasses import replace

import pytest
import torch

from transformer_dropout.runs.cost import sketch_of_splits
from transformer_dropout.runs.loop import build_model
from transformer_dropout.runs.optimizer import (
    learning_rate,
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
    set_learning_rate,
    weight_decay_groups,
)
from transformer_dropout.runs.training_config import TrainingConfig


@pytest.fixture
def model(tiny, learned):
    config = tiny(recipe=learned)
    config = replace(config, model=replace(config.model, bias=True))
    return build_model(config, sketch_of_splits(config))[0]


def test_only_matrices_decay(model):
    decayed, others = weight_decay_groups(model, 0.3)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert {parameter.ndim for parameter in decayed["params"]} == {2}
    assert {parameter.ndim for parameter in others["params"]} == {1}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert "blocks.0.mlp.mlp_output_dropout.shift" in {names[id(p)] for p in others["params"]}


def test_every_trainable_parameter_is_in_one_group(model):
    model.norm.weight.requires_grad_(False)
    grouped = [id(p) for group in weight_decay_groups(model, 0.1) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_decay_shrinks_matrices_and_leaves_norms_alone(model):
    optimizer = make_optimizer(model, TrainingConfig(lr=0.5, weight_decay=1.0))
    for parameter in model.parameters():
        parameter.grad = parameter.new_zeros(parameter.shape)
    matrix, gain = model.blocks[0].mlp.expand.weight, model.norm.weight
    before = matrix.detach().clone(), gain.detach().clone()
    optimizer.step()
    assert matrix.allclose(0.5 * before[0])
    assert gain.equal(before[1])


def test_the_optimizer_takes_its_settings_from_the_config(model):
    group = make_optimizer(model, TrainingConfig(lr=0.02, beta1=0.8, beta2=0.7)).param_groups[0]
    assert (group["lr"], group["betas"], group["fused"]) == (0.02, (0.8, 0.7), True)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.25),  # warm-up: lr * (step + 1) / 4
        (3, 1.0),
        (4, 1.0),  # the cosine begins at lr
        (8, 0.6),  # and is half way at half the way from 4 to 12
        (6, 0.2 + 0.8 * (1 + 2**-0.5) / 2),
        (12, 0.2),
        (99, 0.2),  # and stays at min_lr
    ],
)
def test_the_learning_rate_by_hand(step, rate):
    config = TrainingConfig(lr=1.0, min_lr=0.2, warmup_steps=4, decay_steps=12, steps=100)
    assert learning_rate(step, config) == pytest.approx(rate)


def test_a_schedule_takes_the_place_of_the_cosine():
    lr = {"linear": {"start": 1.0, "end": 0.0}}
    config = TrainingConfig(lr=lr, warmup_steps=6, steps=100)
    rates = [learning_rate(step, config) for step in range(101)]
    assert rates[:7] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1])
    assert rates[99] == pytest.approx(1 / 94)
    assert rates[100] == 0


def test_without_decay_steps_the_cosine_ends_at_the_last_step():
    config = TrainingConfig(lr=1.0, min_lr=0.0, warmup_steps=0, steps=10)
    assert learning_rate(0, config) == 1.0
    assert learning_rate(10, config) == pytest.approx(0.0)


def test_a_warm_up_as_long_as_the_run_divides_by_nothing():
    config = TrainingConfig(lr=1.0, min_lr=0.1, warmup_steps=5, steps=5)
    assert [learning_rate(step, config) for step in (4, 5)] == [1.0, 1.0]


def test_a_gate_with_a_rate_of_its_own_keeps_it_through_the_run(tiny):
    rule = {"select": "mlp_output", "layer": "AnchoredDropout", "heads": 2, "lr_scale": 3.0, "weight": 1.0}
    config = tiny(recipe=[rule])
    model = build_model(config, sketch_of_splits(config))[0]
    optimizer = make_optimizer(model, TrainingConfig(lr=0.5, weight_decay=1.0))
    set_learning_rate(optimizer, 0.01)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    gate = model.blocks[0].mlp.mlp_output_dropout
    assert rates[id(gate.qkv.weight)] == rates[id(gate.shift)] == 0.03
    assert rates[id(model.norm.weight)] == rates[id(model.blocks[0].mlp.expand.weight)] == 0.01


def test_moments_go_by_the_names_of_the_parameters_and_come_back(model):
    optimizer = make_optimizer(model, TrainingConfig())
    assert optimizer_state(model, optimizer) == {}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.norm.weight.grad = None
    optimizer.step()
    state = optimizer_state(model, optimizer)
    names = [name for name, _ in model.named_parameters() if name != "norm.weight"]
    assert state.keys() == {f"{n}/{key}" for n in names for key in ("step", "exp_avg", "exp_avg_sq")}
    again = make_optimizer(model, TrainingConfig())
    load_optimizer_state(model, again, state)
    assert model.norm.weight not in again.state
    found = optimizer_state(model, again)
    assert found.keys() == state.keys() and all(found[name].equal(state[name]) for name in state)
