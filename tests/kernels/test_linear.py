import pytest
import torch
import torch.nn.functional as F
from torch import nn

from transformer_dropout.kernels import linear as linear_module
from transformer_dropout.kernels.linear import FastLinear, linear, takes_onednn


@pytest.fixture
def every_product(monkeypatch):
    """Let small products take the fast way too."""
    monkeypatch.setattr(linear_module, "SMALL", 0)


@pytest.mark.parametrize("with_bias", [True, False])
def test_result_and_gradients_are_those_of_a_linear_layer(every_product, with_bias):
    torch.manual_seed(0)
    x, weight = torch.randn(3, 7, 24, requires_grad=True), torch.randn(16, 24, requires_grad=True)
    bias = torch.randn(16, requires_grad=True) if with_bias else None
    assert takes_onednn(x, weight)
    inputs = [tensor for tensor in (x, weight, bias) if tensor is not None]
    gradient = torch.randn(3, 7, 16)
    found = [linear(x, weight, bias), *torch.autograd.grad(linear(x, weight, bias), inputs, gradient)]
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    exact = F.linear(*wide)
    expected = [exact, *torch.autograd.grad(exact, wide, gradient.double())]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert ((one - other).norm() / other.norm()).item() < 1e-6


def test_the_gradient_has_a_gradient(every_product):
    torch.manual_seed(0)
    x, weight = torch.randn(5, 24, requires_grad=True), torch.randn(16, 24, requires_grad=True)
    results = []
    for product in (linear, F.linear):
        (first,) = torch.autograd.grad(product(x, weight).pow(3).sum(), x, create_graph=True)
        results.append(torch.autograd.grad(first.pow(2).sum(), weight)[0])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-2)


def test_other_tensors_take_pytorchs_own_way(every_product):
    x, weight = torch.randn(4, 8), torch.randn(8, 8)
    assert not takes_onednn(x.double(), weight.double())
    assert not takes_onednn(x.bfloat16(), weight.bfloat16())
    assert not takes_onednn(x[:0], weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not takes_onednn(x, weight)
        assert linear(x, weight).dtype == torch.bfloat16
    torch.testing.assert_close(linear(x.double(), weight.double()), F.linear(x.double(), weight.double()))


def test_operations_are_counted_as_before(every_product):
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        linear(torch.randn(4, 8), torch.randn(16, 8))
    assert counter.get_total_flops() == 2 * 4 * 8 * 16


def test_the_layer_is_a_linear_layer_of_another_class(every_product):
    layer = nn.Linear(12, 20)
    x = torch.randn(9, 12)
    expected = layer(x)
    layer.__class__ = FastLinear
    torch.testing.assert_close(layer(x), expected)
    assert isinstance(layer, nn.Linear)
