"""When gates and rates learn from held-out examples, and what of that a checkpoint holds."""

from types import SimpleNamespace

import pytest
import torch

from transformer_dropout.errors import InputError
from transformer_dropout.runs import held_out
from transformer_dropout.runs.held_out import HeldOut, refuse_several_processes
from transformer_dropout.runs.training_config import SelfTunedConfig, TrainingConfig


class Gates:
    """Stands for gates that take their gradient apart from the weights."""

    def __init__(self, model):
        self.model, self.weights, self.asked = model, [torch.ones(2, requires_grad=True)], []

    def backward(self, loss, held_out):
        self.asked.append((loss, held_out))


class Crossed(Gates):
    """Stands for cross-fitted gates."""


class Tuned:
    """Stands for rates that are tuned."""

    def __init__(self, regularization, **options):
        self.regularization, self.options, self.asked, self.loaded = regularization, options, [], None

    def measure(self, *losses):
        self.asked.append(losses)

    def state_dict(self):
        return {"signs": torch.ones(3), "rates": {"a": 0.1}, "size": 2.0}

    def load_state_dict(self, state):
        self.loaded = state


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    for name, kind in (("HeldOutGates", Gates), ("CrossFittedGates", Crossed), ("SelfTuned", Tuned)):
        monkeypatch.setattr(held_out, name, kind)


def made(**training):
    return HeldOut(TrainingConfig(**training), "model", "layers", 3)


def test_without_either_a_loss_and_its_penalty_are_one():
    plain, weight = made(), torch.ones((), requires_grad=True)
    assert (plain.gates, plain.tuned, plain.every) == (None, None, 1)
    plain.backward(1, 2 * weight, 3 * weight, pytest.fail)
    assert weight.grad == 5
    plain.tune(0, pytest.fail, pytest.fail)
    assert (plain.tensors(), plain.state(), plain.load({}, {})) == ({}, {}, None)


@pytest.mark.parametrize(("keys", "kind"), [({"held_out": 0.2}, Gates), ({"cross_fit": True}, Crossed)])
def test_gates_learn_every_so_many_steps_and_the_weights_at_each(keys, kind):
    parts = made(held_out_every=2, **keys)
    assert type(parts.gates) is kind and parts.gates.model == "model" and parts.every == 2
    weight = parts.gates.weights[0]
    for step in range(4):
        parts.backward(step, 2 * weight.sum(), torch.zeros(()), str)
    assert [given for _, given in parts.gates.asked] == [str, str]
    assert weight.grad.tolist() == [4, 4]
    assert (parts.tensors(), parts.state()) == ({}, {})


def test_rates_are_tuned_every_so_many_steps_from_the_first_on():
    parts = made(self_tuned=SelfTunedConfig(every=3, step=0.2, delta=0.4), held_out_every=1)
    assert parts.gates is None and parts.tuned.regularization == "layers"
    assert parts.tuned.options == {"step": 0.2, "delta": 0.4, "seed": 3}
    for step in range(7):
        parts.tune(step, "training", "held out")
    assert parts.tuned.asked == [("training", "held out")] * 3


def test_a_checkpoint_holds_the_rates_and_the_signs():
    parts = made(self_tuned=SelfTunedConfig())
    tensors, state = parts.tensors(), parts.state()
    assert tensors["self_tuned"].keys() == {"signs"} and tensors["self_tuned"]["signs"].equal(torch.ones(3))
    assert state == {"self_tuned": {"rates": {"a": 0.1}, "size": 2.0}}
    parts.load(tensors, state)
    assert parts.tuned.loaded == state["self_tuned"] | tensors["self_tuned"]


def test_several_processes_are_refused_by_the_key_that_needs_one():
    one, two = SimpleNamespace(size=1), SimpleNamespace(size=2)
    refuse_several_processes(TrainingConfig(cross_fit=True), one)
    refuse_several_processes(TrainingConfig(), two)
    with pytest.raises(InputError, match=r"training\.cross_fit trains in one process"):
        refuse_several_processes(TrainingConfig(cross_fit=True), two)
