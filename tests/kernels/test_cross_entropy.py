import pytest
import torch
import torch.nn.functional as F

from transformer_dropout.kernels import cross_entropy as module
from transformer_dropout.kernels.cross_entropy import linear_cross_entropy


def plain(x, weight, targets):
    return F.cross_entropy(F.linear(x, weight).flatten(0, -2), targets.flatten())


def example(dtype=torch.float32):
    torch.manual_seed(0)
    x = torch.randn(3, 7, 16, dtype=dtype, requires_grad=True)
    weight = torch.randn(50, 16, dtype=dtype, requires_grad=True)
    return x, weight, torch.randint(50, (3, 7))


@pytest.mark.parametrize("logits", [50, 200, 10**6])
def test_chunks_give_the_loss_and_the_gradients_of_all_logits(monkeypatch, logits):
    monkeypatch.setattr(module, "PROCESSOR_LOGITS", logits)
    x, weight, targets = example()
    found = torch.autograd.grad(3 * linear_cross_entropy(x, weight, targets), (x, weight))
    exact = plain(x.double(), weight.double(), targets)
    expected = torch.autograd.grad(3 * exact, (x, weight))
    assert abs(linear_cross_entropy(x, weight, targets).item() - exact.item()) < 1e-6
    for one, other in zip(found, expected, strict=True):
        assert ((one - other).norm() / other.norm()).item() < 1e-6


def test_gradients_are_exact_in_float64():
    x, weight, targets = example(torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: linear_cross_entropy(a, b, targets), (x, weight))


def test_bfloat16_under_autocast():
    x, weight, targets = example()
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x, weight, targets)
    exact = plain(x, weight, targets)
    assert loss.dtype == torch.float32
    assert abs(loss.item() / exact.item() - 1) < 1e-2
    found, expected = (torch.autograd.grad(one, (x, weight)) for one in (loss, exact))
    for one, other in zip(found, expected, strict=True):
        assert ((one - other).norm() / other.norm()).item() < 1e-2


def test_large_logits_stay_finite():
    x, weight, targets = example()
    loss = linear_cross_entropy(1e4 * x, weight, targets)
    assert loss.isfinite()
    torch.testing.assert_close(loss, plain(1e4 * x, weight, targets))


def test_without_gradients_none_is_made():
    x, weight, targets = example()
    with torch.no_grad():
        assert linear_cross_entropy(x, weight, targets).grad_fn is None
    (only,) = torch.autograd.grad(linear_cross_entropy(x.detach(), weight, targets), weight)
    torch.testing.assert_close(only, torch.autograd.grad(plain(x, weight, targets), weight)[0])
