"""The MLP as one operation, against its three layers."""

import pytest
import torch
from torch import nn

import transformer_dropout as td
from transformer_dropout.kernels import linear as kernel
from transformer_dropout.kernels import mlp as mlp_kernel
from transformer_dropout.kernels.mlp import mlp


@pytest.fixture(autouse=True, params=[0, 2**19], ids=["computed again", "kept"])
def kept(request, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(kernel, "SMALL", 0)
    monkeypatch.setattr(mlp_kernel, "KEPT", request.param)
    return request.param


def layers(bias=True, approximate="none", dtype=torch.float32):
    three = nn.Linear(12, 48, bias=bias), nn.GELU(approximate), nn.Linear(48, 12, bias=bias)
    return tuple(layer.to(dtype) for layer in three)


def step(function, x, three):
    x = x.clone().requires_grad_()
    y = function(x)
    gradient = torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype)
    y.backward(gradient)
    found = [y, x.grad, *(p.grad for layer in three for p in layer.parameters())]
    for layer in three:
        layer.zero_grad()
    return found


def error(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("fast", [False, True])
def test_results_and_gradients_are_those_of_the_layers(bias, approximate, fast):
    three, x = layers(bias, approximate), torch.randn(2, 7, 12)
    if fast:
        td.speed_up_(nn.ModuleList(three))
    ours = step(lambda x: mlp(x, *three), x, three)
    expected = step(lambda x: three[2](three[1](three[0](x))), x, three)
    assert ours[0].grad_fn.name() == "GeluMLPBackward"
    assert len(ours) == (6 if bias else 4)
    for found, wanted in zip(ours, expected, strict=True):
        assert error(found, wanted) < 1e-6


def test_gradcheck():
    three, x = layers(dtype=torch.float64), torch.randn(2, 3, 12, dtype=torch.float64, requires_grad=True)
    parameters = [p for layer in three for p in layer.parameters()]
    assert torch.autograd.gradcheck(lambda x, *_: mlp(x, *three), (x, *parameters))


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16(autocast):
    three = layers(dtype=torch.float32 if autocast else torch.bfloat16)
    x = torch.randn(2, 30, 12).to(three[0].weight.dtype)

    def run(function):
        def inside(x):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                return function(x)

        return step(inside, x, three)

    ours, plain = run(lambda x: mlp(x, *three)), run(lambda x: three[2](three[1](three[0](x))))
    for found, wanted in zip(ours, plain, strict=True):
        assert found.dtype == wanted.dtype
        assert error(found, wanted) < 1e-2


def test_autocast_remembers_no_weight_without_a_gradient():
    three, x = layers(), torch.randn(3, 12)
    with torch.autocast("cpu", torch.bfloat16):
        (mlp(x, *three).sum() + three[0](x).sum()).backward()
    found = three[0].weight.grad.clone()
    three[0].zero_grad()
    mlp(x.bfloat16().float(), *three).sum().backward()
    alone = three[0].weight.grad
    assert error(found - x.sum(0), alone) < 0.05


def test_it_keeps_what_enters_the_weights_and_hidden_units_while_these_are_few(kept):
    three, x = layers(), torch.randn(100, 12, requires_grad=True)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        mlp(x, *three)
    assert sorted(sizes)[-2:] == ([4 * x.numel(), x.numel()][::-1] if kept else [576, x.numel()])
    assert len(sizes) == (6 if kept else 5)


@pytest.mark.parametrize("number", range(3))
def test_a_hook_on_any_layer_is_called(number):
    three, seen = layers(), []
    three[number].register_forward_hook(lambda module, arguments, output: seen.append(1) or output * 0)
    y = mlp(torch.randn(4, 12), *three)
    assert seen == [1]
    if number == 1:
        torch.testing.assert_close(y, three[2].bias.expand(4, 12))


def test_other_layers_are_called_as_they_are():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    expand, activation, _ = layers()
    projection, x = Doubled(48, 12), torch.randn(4, 12)
    expected = projection(activation(expand(x)))
    assert torch.equal(mlp(x, expand, activation, projection), expected)
    assert mlp(x, expand, nn.ReLU(), projection).grad_fn.name() != "GeluMLPBackward"
