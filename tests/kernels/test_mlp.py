import pytest
import torch
from torch import nn

from transformer_dropout.kernels.mlp import GeluMLP, bare, mlp


def parts(bias, approximate="none", dtype=torch.float32):
    torch.manual_seed(0)
    return (
        nn.Linear(12, 48, bias=bias, dtype=dtype),
        nn.GELU(approximate),
        nn.Linear(48, 12, bias=bias, dtype=dtype),
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_result_and_gradients_are_those_of_the_three_modules(bias, approximate):
    expand, activation, projection = parts(bias, approximate)
    x = torch.randn(2, 5, 12, requires_grad=True)
    inputs = [x, *expand.parameters(), *projection.parameters()]
    together = mlp(x, expand, activation, projection)
    assert "GeluMLP" in type(together.grad_fn).__name__
    apart = projection(activation(expand(x)))
    torch.testing.assert_close(together, apart)
    gradient = torch.randn(2, 5, 12)
    found, expected = (torch.autograd.grad(out, inputs, gradient) for out in (together, apart))
    for one, other in zip(found, expected, strict=True):
        assert ((one - other).norm() / other.norm()).item() < 1e-6


def test_gradients_are_exact_in_float64():
    expand, _, projection = parts(True, dtype=torch.float64)
    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *inputs: GeluMLP.apply(*inputs, "none"),
        (x, expand.weight, expand.bias, projection.weight, projection.bias),
    )


def test_autocast_gives_bfloat16_products_and_float32_gradients():
    expand, activation, projection = parts(False)
    x = torch.randn(64, 12, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = mlp(x, expand, activation, projection)
    assert out.dtype == torch.bfloat16
    out.float().pow(2).sum().backward()
    found = expand.weight.grad.clone()
    expand.weight.grad = None
    projection(activation(expand(x))).pow(2).sum().backward()
    assert found.dtype == torch.float32
    assert ((found - expand.weight.grad).norm() / expand.weight.grad.norm()).item() < 2e-2


def test_only_what_enters_is_kept():
    expand, activation, projection = parts(False)
    x, kept = torch.randn(10, 12, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        mlp(x, expand, activation, projection)
    weights = {id(p) for p in (expand.weight, projection.weight)}
    assert sum(t.numel() for t in kept if id(t) not in weights) == x.numel()


def test_a_hook_in_between_still_runs():
    expand, activation, projection = parts(False)
    assert bare(activation, nn.GELU)
    handle = activation.register_forward_hook(lambda module, inputs, out: out * 0)
    assert not bare(activation, nn.GELU)
    assert not mlp(torch.randn(3, 12), expand, activation, projection).any()
    handle.remove()
    assert mlp(torch.randn(3, 12), expand, activation, projection).any()
