"""Rates that stand in a model's code: found, silenced, steered, told of, and left as they were."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import transformer_dropout as td
from transformer_dropout.sites import _written_rates, own_rate

KINDS = ("embedding", "attention_weights", "attention_output", "mlp_output")


def closed_over(p: float):
    return lambda x, training: F.dropout(x, p, training)


class Block(nn.Module):
    """Attention and an MLP with dropout in three of the ways to write it without an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.projection = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)
        self.drop = closed_over(0.25)
        self.half = functools.partial(F.dropout)

    def attend(self, x: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*heads, dropout_p=0.1 if self.training else 0.0)
        return self.projection(mixed.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attend(x), self.training)
        return x + self.half(self.down(self.up(x).relu()), training=self.training)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.token = nn.Embedding(20, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(8, 20)

    def forward(self, ids: Tensor) -> Tensor:
        x = F.dropout(self.token(ids), 0.05, self.training)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


IDS = torch.arange(12).view(2, 6)


def test_each_is_a_rate_at_its_place():
    model = Model()
    rates = {(site.kind, site.block): own_rate(model, site) for site in td.find_sites(model, IDS)}
    assert rates["embedding", None] == 0.05
    for block in range(2):
        assert rates["attention_weights", block] == 0.1
        assert rates["attention_output", block] == 0.25
        assert rates["mlp_output", block] == 0.5


def test_at_rate_0_two_training_forwards_are_bit_equal():
    model = Model().train()
    assert not torch.equal(model(IDS), model(IDS))
    td.set_rates(model, dict.fromkeys(KINDS, 0.0))
    assert torch.equal(model(IDS), model(IDS))


def test_a_layer_takes_its_place_and_does_not_add_to_it():
    model = Model().train()
    td.set_rates(model, {"mlp_output": 0.2})
    events = [e for e in td.audit(model, IDS).events if e.kind == "mlp_output"]
    assert [event.rate for event in events if event.training] == [0.2, 0.2]


def test_that_of_attention_follows_a_schedule():
    model = Model()
    handle = td.set_rates(model, {"attention_weights": td.Linear(0.4, 0.1)})
    for progress, rate in ((0.0, 0.4), (1.0, 0.1), (0.5, 0.25)):
        handle.set_progress(progress)
        events = td.audit(model, IDS).events
        seen = [event.resolved for event in events if event.kind == "attention_weights"]
        assert seen == pytest.approx([rate, rate])


def test_what_no_rule_names_is_in_the_report():
    report = td.set_rates(Model(), {"mlp_output": 0.2}).report()
    assert "beside the recipe: blocks.0.projection  attention_output  0.25" in report
    assert "beside the recipe: blocks.1  attention_weights  0.1" in report


def test_removal_leaves_no_trace():
    model = Model()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    handle = td.set_rates(model, {**dict.fromkeys(KINDS, td.Linear(0.0, 0.1)), "block": 0.1})
    handle.set_progress(1.0)
    handle.remove()
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    torch.manual_seed(1)
    first = model.train()(IDS)
    twin = Model().train()
    torch.manual_seed(1)
    assert torch.equal(first, twin(IDS))


def test_the_places_prove_themselves_and_evaluation_is_untouched():
    model = Model()
    assert [check.problem for check in td.check_sites(model, IDS) if check.problem] == []
    expected = model.eval()(IDS)
    td.set_rates(model, dict.fromkeys(KINDS, 0.3))
    assert torch.equal(model(IDS), expected)


def test_a_copy_has_rates_of_its_own():
    model = Model()
    td.set_rates(model, dict.fromkeys(KINDS, 0.0))
    twin = copy.deepcopy(model)
    td.handle_of(model).remove()
    assert torch.equal(twin(IDS), twin(IDS))
    assert not torch.equal(model(IDS), model(IDS))


def test_compiled_it_is_left_to_python_and_a_full_graph_is_refused():
    model = Model()
    td.set_rates(model, dict.fromkeys(KINDS, 0.0))
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(compiled(IDS), compiled(IDS))
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="A rate stands in the code of Model"):
        torch.compile(model, backend="eager", fullgraph=True)(IDS)


class Drawn(Block):
    """A block with a mask that is drawn by hand, whose rate no call is given."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x)
        mixed = self.down(self.up(x).relu())
        return x + (mixed * (torch.rand_like(mixed) > 0.1) if self.training else mixed)


def test_what_can_only_be_named_is_named():
    model = Model()
    model.blocks = nn.ModuleList(Drawn() for _ in range(2))
    with pytest.warns(UserWarning, match="draws random numbers in training that no layer"):
        handle = td.set_rates(model, {"mlp_output": 0.0})
    assert "blocks.0  other" in handle.beside


class Checkpointed(Model):
    """The same, of which the backward pass computes again what each block does."""

    def __init__(self, again) -> None:
        super().__init__()
        self.again = again

    def forward(self, ids: Tensor) -> Tensor:
        x = F.dropout(self.token(ids), 0.05, self.training)
        for block in self.blocks:
            x = x + self.again(lambda y, block=block: F.dropout(block.attend(y), 0.25, self.training), x)
            x = x + self.again(lambda y, block=block: F.dropout(block.down(block.up(y).relu()), 0.1), x)
        return self.head(x)


def nested(function, x):
    def outer(y):
        return checkpoint(function, y, use_reentrant=False) * 1.0

    return checkpoint(outer, x, use_reentrant=False)


def in_segments(function, x):
    return checkpoint_sequential([function, lambda y: y * 1.0], 2, x, use_reentrant=True)


def gradients(again):
    model = Checkpointed(again).train()
    rates = {"attention_weights": 0.5, "attention_output": 0.6, "mlp_output": 0.5}
    td.set_rates(model, rates, inputs=IDS)
    torch.manual_seed(2)
    model(IDS).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# It looks at each part alone too, without gradients.
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize(
    "again",
    [
        functools.partial(checkpoint, use_reentrant=False),
        functools.partial(checkpoint, use_reentrant=True),
        nested,
        in_segments,
    ],
    ids=["plain", "reentrant", "nested", "in segments"],
)
def test_what_a_checkpoint_computes_again_drops_as_it_did(again):
    expected, found = gradients(lambda function, x: function(x)), gradients(again)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)


def test_a_checkpoint_that_cannot_be_followed_is_refused(monkeypatch):
    def hidden(frame):
        if frame.f_code.co_name == "checkpoint":
            raise LookupError("nothing is shown")

    monkeypatch.setattr(_written_rates, "recomputed_by", hidden)
    with pytest.raises(td.InputError, match=r"a checkpoint computes again \(nothing is shown\)"):
        gradients(functools.partial(checkpoint, use_reentrant=False))


class Mixed(nn.Module):
    """A block whose code drops at rates that stand there and at one of an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.projection, self.p = nn.Linear(8, 24), nn.Linear(8, 8), 0.2
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, -1)
        weights = F.dropout((query @ key.mT).softmax(-1), 0.1, self.training)
        x = x + F.dropout(self.projection(weights @ value), self.p, self.training)
        hidden = F.dropout(self.up(x).relu(), 0.05, self.training)
        return x + F.dropout(self.down(hidden), self.p, self.training)


def test_a_rate_that_stands_in_the_code_is_not_taken_for_one_that_comes_after_it():
    model = nn.Sequential(nn.Linear(8, 8), Mixed(), Mixed())
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    rates = {site.kind: own_rate(model, site) for site in td.find_sites(model, x) if site.block == 1}
    assert rates["attention_weights"] == pytest.approx(0.1) and rates["mlp_hidden"] == pytest.approx(0.05)
    assert rates["attention_output"] == rates["mlp_output"] == 0.2
    td.set_rates(model, {"attention_weights": 0.3, "attention_output": 0.0}, inputs=x)
    assert [e.rate for e in td.audit(model, x).events if e.kind == "attention_weights"] == [0.3] * 2
