"""Modules through which one token of a block influences others, and modules that keep them apart."""

import pytest
import torch
from torch import nn

from transformer_dropout.surgery._influence import Watch, mixers


class Mixing(nn.Module):
    """Adds the mean of all tokens to each."""

    def __init__(self, dimension=1):
        super().__init__()
        self.dimension = dimension

    def forward(self, x):
        return x + x.mean(self.dimension, keepdim=True)


class Block(nn.Module):
    """A residual block of two parts; it may take and give its tensor in other ways."""

    def __init__(self, *parts, form="tensor"):
        super().__init__()
        self.first, self.second = parts
        self.form = form

    def forward(self, mask=None, x=None):
        x = mask if x is None else x
        y = x + self.second(self.first(x))
        return {"tensor": y, "tuple": (y, None), "list": [y]}[self.form]


class Stack(nn.Module):
    def __init__(self, *blocks, named=False):
        super().__init__()
        self.blocks, self.named = nn.ModuleList(blocks), named

    def forward(self, x):
        for block in self.blocks:
            y = block(None, x=x) if self.named else block(x)
            x = y if isinstance(y, torch.Tensor) else y[0]
        return x


def apart():
    return nn.Linear(4, 4), nn.GELU()


def together(dimension=1):
    return nn.Linear(4, 4), Mixing(dimension)


X = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("form", ["tensor", "tuple"])
def test_a_block_that_mixes_is_told_with_the_module_that_does(named, form):
    torch.manual_seed(0)
    model = Stack(Block(*apart(), form=form), Block(*together(), form=form), Block(*apart()), named=named)
    found = mixers(model, X, {f"blocks.{n}": 1 for n in range(3)})
    assert found == {"blocks.1": ["blocks.1.second", "blocks.1"]}


def test_each_block_is_measured_on_its_own():
    torch.manual_seed(0)
    model = Stack(Block(*together()), Block(*apart()), Block(Mixing(), nn.Linear(4, 4)))
    found = mixers(model, X, {f"blocks.{n}": 1 for n in range(3)})
    # What only passes on that others have moved is no mixer.
    assert found == {"blocks.0": ["blocks.0.second", "blocks.0"], "blocks.2": ["blocks.2.first", "blocks.2"]}


def test_tokens_may_lie_in_another_dimension():
    torch.manual_seed(0)
    tokens_first = X.transpose(0, 1).contiguous()
    for dimension, mixing in ((0, True), (1, False)):
        model = Stack(Block(*together(dimension)))
        assert bool(mixers(model, tokens_first, {"blocks.0": 0})) is mixing


def test_a_block_that_runs_twice_is_measured_each_time():
    torch.manual_seed(0)
    block = Block(*together())
    model = Stack(block, block)
    assert mixers(model, X, {"blocks.0": 1}) == {"blocks.0": ["blocks.0.second", "blocks.0"] * 2}


@pytest.mark.parametrize("x", [torch.ones(2, 5, dtype=torch.long), torch.randn(5, 4)])
def test_a_block_of_no_sequences_is_not_measured(x):
    model = Stack(Block(nn.Identity(), nn.Identity()))
    assert mixers(model, x, {"blocks.0": 1}) == {}


def test_a_look_leaves_the_model_as_it_was():
    model = Stack(Block(*together())).eval()
    state = torch.get_rng_state()
    mixers(model, X, {"blocks.0": 1})
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_one_token_is_moved_and_no_other():
    watch = Watch(nn.Identity(), {"a": 1})
    moved = watch.with_a_token_moved("a", X)
    assert moved[:, [0, 1, 3, 4]].equal(X[:, [0, 1, 3, 4]])
    assert moved[:, 2].equal(X[:, 2].roll(1, -1) + 0.5)


def test_others_are_looked_at_where_there_are_as_many_as_tokens():
    watch = Watch(nn.Identity(), {"a": 1, "b": 0})
    assert not watch.others_moved("a", X, X + 1)
    watch.given = {"a": [X], "b": [X.transpose(0, 1)]}
    itself, other, nothing = (X.clone() for _ in range(3))
    itself[:, 2] += 1
    other[:, 1] += 1
    nothing[:, 1] += 1e-7
    nothing[0, 0, 0] = X[0, 0, 0]
    assert [watch.others_moved("a", X, after) for after in (itself, other, nothing)] == [False, True, False]
    # A convolution has its tokens last, and what has none is not looked at.
    assert watch.others_moved("a", X.transpose(1, 2), other.transpose(1, 2))
    assert not watch.others_moved("a", X.transpose(1, 2), itself.transpose(1, 2))
    assert not watch.others_moved("a", X[:, :3], other[:, :3])
    assert not watch.others_moved("a", X[:, :3], other)
    assert watch.others_moved("b", X.transpose(0, 1), other.transpose(0, 1))
    assert not watch.others_moved("b", X.transpose(0, 1), itself.transpose(0, 1))
