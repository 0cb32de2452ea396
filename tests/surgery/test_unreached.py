"""Blocks that still change what a model returns when their branches are dropped."""

import pytest
import torch
from torch import nn

from transformer_dropout.surgery._unreached import gradients, unreached


class Block(nn.Module):
    """Adds one branch that is dropped in training, and one that is not where there is a further matrix."""

    def __init__(self, further):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.branch, self.drop = nn.Linear(4, 4), nn.Dropout(1.0)
        self.inner = nn.ModuleDict({"more": nn.Linear(4, 4), "again": nn.Linear(4, 4)}) if further else None

    def forward(self, x):
        x = x + self.drop(self.branch(self.norm(x)))
        if self.inner is None:
            return x
        return x + self.inner.again(self.inner.more(x))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(Block(False), Block(True), Block(True)).eval()


def test_a_block_is_told_of_by_its_first_matrix_that_acts(model):
    x = torch.randn(2, 3, 4)
    assert unreached(model, x, ["0", "1", "2"]) == {"1": "1.inner.more", "2": "2.inner.more"}
    assert unreached(model, x, ["2"]) == {"2": "2.inner.more"}
    assert unreached(model, x, []) == {}


def test_what_does_not_learn_or_hardly_acts_is_not_told_of(model):
    model[1].requires_grad_(False)
    with torch.no_grad():
        model[2].inner.again.weight.mul_(1e-9)
        model[2].inner.more.weight.zero_()
    model[2].inner.again.requires_grad_(False)
    assert unreached(model, torch.randn(2, 3, 4), ["0", "1", "2"]) == {}


def test_a_block_may_be_a_matrix_itself():
    model = nn.Sequential(nn.Linear(4, 4))
    assert unreached(model, torch.randn(2, 4), ["0"]) == {"0": "0"}


def test_a_look_leaves_the_model_as_it_was(model):
    state = torch.get_rng_state()
    with torch.no_grad():
        unreached(model, torch.randn(2, 3, 4, generator=torch.Generator()), ["1"])
    assert not model.training and torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_are_of_a_sum_that_no_softmax_flattens():
    model = nn.Sequential(nn.Linear(3, 3), nn.Softmax(-1))
    (found,) = gradients(model, torch.randn(2, 3), [model[0].weight])
    assert found.abs().max() > 1e-3


def test_where_nothing_depends_on_anything_there_is_none():
    model = nn.Linear(3, 3)
    other = nn.Parameter(torch.ones(1))
    assert gradients(model, torch.randn(2, 3), [other, other]) == (None, None)
    assert gradients(model, torch.randn(2, 3), []) == ()
    assert gradients(nn.Identity(), torch.randn(2, 3), [other]) == (None,)
