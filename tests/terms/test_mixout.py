"""Mixout by hand, in expectation, and gone without a trace when removed."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

import transformer_dropout as td
from transformer_dropout.terms.mixout import mixout

IDS = torch.arange(6).view(2, 3)


def compile_and_count(model):
    """Return the model compiled as one graph, and the list of the graphs that were needed so far."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    return torch.compile(model, backend=backend, fullgraph=True), graphs


@given(st.lists(st.floats(-9, 9), min_size=4, max_size=4), st.floats(0, 0.9))
def test_every_element_is_one_of_the_two_values_of_the_formula(values, p):
    w, u = torch.tensor(values, dtype=torch.float64), torch.tensor([1.0, -1.0, 0.5, 0.0], dtype=torch.float64)
    plain, mixed_in = (w - p * u) / (1 - p), (u - p * u) / (1 - p)
    result = mixout(w, u, p)
    near = torch.minimum((result - plain).abs(), (result - mixed_in).abs())
    assert near.max() < 1e-9


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_mixout_keeps_the_expectation_and_mixes_at_its_rate(kind):
    torch.manual_seed(0)
    w, u, p = torch.full((200_000,), 2.0), torch.full((200_000,), 1.0), 0.3
    result = mixout(w, u, kind(p))
    assert result.mean().item() == pytest.approx(2.0, abs=0.01)  # over six standard errors
    assert result.eq(1.0).float().mean().item() == pytest.approx(p, abs=0.006)


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_mixout_at_its_ends(kind):
    w, u = torch.randn(50), torch.randn(50)
    assert mixout(w, u, kind(1.0)).equal(u)
    torch.testing.assert_close(mixout(w, u, kind(0.0)), w)


def test_the_gradient_of_mixout_is_the_mask():
    w, u = torch.randn(99, requires_grad=True), torch.randn(99)
    result = mixout(w, u, 0.5)
    result.sum().backward()
    assert w.grad.tolist() == [0.0 if same else 2.0 for same in result.eq(u).tolist()]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(7, 4)
        self.body, self.norm, self.output = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 7)
        self.output.weight = self.tokens.weight

    def forward(self, ids):
        return self.output(self.norm(self.body(self.tokens(ids)).tanh()))


@pytest.fixture
def tied():
    """A model one step away from where it started, and its start."""
    torch.manual_seed(0)
    model = Tied()
    start = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter)
    return model, start


def test_mixout_mixes_in_training_only_and_goes_without_a_trace(tied):
    model, start = tied
    before, parameters, keys = model(IDS), dict(model.named_parameters()), list(model.state_dict())
    handle = td.mixout_(model, 0.5, pretrained=start)
    assert handle.names == ["body.weight"]
    assert not model(IDS).equal(before)
    assert not model(IDS).equal(model(IDS))
    assert list(model.state_dict()) == keys
    assert model.eval()(IDS).equal(before)
    handle.remove()
    assert model.train()(IDS).equal(before)
    assert dict(model.named_parameters()) == parameters  # the same objects in the same order
    assert list(dict(model.named_parameters())) == list(parameters)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(td.InputError, match="removed already"):
        handle.remove()


def test_with_p_one_the_pretrained_weights_act(tied):
    model, start = tied
    td.mixout_(model, 1.0, pretrained=start, select="*.weight")
    expected = Tied()
    expected.load_state_dict(
        {n: start[n] if n.endswith("weight") else t for n, t in model.state_dict().items()}
    )
    torch.testing.assert_close(model(IDS), expected(IDS))


def test_without_pretrained_the_weights_are_mixed_with_themselves_until_they_move(tied):
    model, _ = tied
    before = model(IDS)
    td.mixout_(model, 0.5)
    torch.testing.assert_close(model(IDS), before)
    with torch.no_grad():
        model.body.weight += 1.0
    assert not model(IDS).allclose(model(IDS))


def test_what_the_pretrained_lack_is_not_mixed(tied):
    model, start = tied
    model.body = nn.Linear(4, 4)
    start = {name: tensor for name, tensor in start.items() if "body" not in name}
    assert td.mixout_(model, 0.5, pretrained=start, select="*.weight").names == [
        *("tokens.weight", "output.weight", "norm.weight")
    ]


def test_gradients_are_those_of_the_mixed_weight():
    model = nn.Linear(3, 2, bias=False)
    start = model.weight.detach() + 1.0
    td.mixout_(model, 0.5, pretrained={"weight": start})
    x = torch.randn(5, 3)
    torch.manual_seed(3)
    model(x).square().sum().backward()
    twin = model.weight.detach().clone().requires_grad_()
    torch.manual_seed(3)
    (x @ mixout(twin, start, 0.5).T).square().sum().backward()
    torch.testing.assert_close(model.weight.grad, twin.grad)


def test_training_under_mixout_pulls_to_the_pretrained_weights():
    torch.manual_seed(0)
    x, distances = torch.randn(64, 6), []
    for p in (0.0, 0.8):
        torch.manual_seed(1)
        model = nn.Linear(6, 1)
        start = model.weight.detach().clone()
        td.mixout_(model, p)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(600):
            optimizer.zero_grad()
            (model(x)[:, 0] - x.sum(dim=1) * 3).square().mean().backward()
            optimizer.step()
        distances.append((model.weight.detach() - start).norm().item())
    assert distances[1] < 0.7 * distances[0]


def test_p_follows_its_schedule(tied):
    model, start = tied
    handle = td.mixout_(model, td.Linear(0.0, 1.0), pretrained=start)
    plain = model.eval()(IDS)
    torch.testing.assert_close(model.train()(IDS), plain)
    handle.set_progress(0.5)
    assert handle.p == 0.5
    assert not model(IDS).allclose(plain)


def test_a_forward_that_fails_leaves_the_parameter_in_place(tied):
    model, start = tied
    td.mixout_(model, 0.5, pretrained=start)
    parameter = model.body.weight
    with pytest.raises(RuntimeError):
        model.body(torch.randn(3, 5))
    assert model.body.weight is parameter


def test_a_recomputation_draws_the_same_mixture(tied):
    model, start = tied
    td.mixout_(model, 0.5, pretrained=start)
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model.zero_grad()
        x = torch.randn(3, 4, requires_grad=True)
        y = checkpoint(model.body, x, use_reentrant=False) if checkpointed else model.body(x)
        y.square().sum().backward()
        gradients.append(model.body.weight.grad)
    assert gradients[0].equal(gradients[1])
    assert isinstance(model.body.weight, nn.Parameter)


def test_one_compiled_graph_serves_every_p(tied):
    model, start = tied
    handle = td.mixout_(model, td.Linear(0.0, 1.0), pretrained=start)
    compiled, graphs = compile_and_count(model)
    outputs = []
    for progress in (0.0, 0.3, 0.6, 1.0):
        handle.set_progress(progress)
        outputs.append(compiled(IDS).detach())
    assert len(graphs) == 1
    torch.testing.assert_close(outputs[0], model.eval()(IDS))
    model.train()
    torch.testing.assert_close(outputs[-1], model(IDS))
    assert isinstance(model.body.weight, nn.Parameter)


def test_a_copied_model_has_its_own_mixture(tied):
    model, start = tied
    handle = td.mixout_(model, 1.0, pretrained=start)
    other = copy.deepcopy(model)
    mixed = model(IDS)
    handle.remove()
    assert other(IDS).equal(mixed)
    assert not model(IDS).equal(mixed)


def test_the_projection_of_multi_head_attention_is_reached():
    model = nn.MultiheadAttention(4, 2)
    start = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter)
    x = torch.randn(3, 1, 4)
    handle = td.mixout_(model, 1.0, pretrained=start, select=["in_proj_weight", "out_proj.weight"])
    assert handle.unreached == ["in_proj_weight", "out_proj.weight"]
    mixed = model(x, x, x)[0]
    assert handle.unreached == []
    handle.remove()
    model.load_state_dict(start | {n: t for n, t in model.state_dict().items() if n.endswith("bias")})
    torch.testing.assert_close(mixed, model(x, x, x)[0])


def test_a_weight_that_no_forward_reaches_is_reported(tied):
    model, _ = tied
    model.unused = nn.Linear(2, 2)
    handle = td.mixout_(model, 0.5)
    model(IDS)
    assert handle.unreached == ["unused.weight"]


def test_a_module_that_is_held_twice_mixes_once():
    linear = nn.Linear(2, 2)
    assert len(td.mixout_(nn.Sequential(linear, linear), 0.5).names) == 1


def test_a_second_mixout_of_a_weight_is_refused_and_changes_nothing(tied):
    model, start = tied
    first = td.mixout_(model, 0.5, pretrained=start, select="body.weight")
    with pytest.raises(td.InputError, match=r"body\.weight is mixed already"):
        td.mixout_(model, 0.5, pretrained=start, select=["tokens.weight", "body.weight"])
    assert not model.tokens._forward_hooks
    first.remove()
    td.mixout_(model, 0.5, pretrained=start)


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_a_p_that_is_no_probability_is_refused_and_changes_nothing(tied, p):
    model, start = tied
    with pytest.raises(td.InputError, match="between 0 and 1"):
        td.mixout_(model, p, pretrained=start)
    assert not model.body._forward_hooks


def test_a_state_dict_of_another_model_is_refused(tied):
    with pytest.raises(td.InputError, match="this very model class"):
        td.mixout_(tied[0], 0.5, pretrained={"bert.body.weight": torch.zeros(4, 4)})
