"""Output layer and cross-entropy in chunks, against logits written out."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from transformer_dropout.kernels import cross_entropy as kernel
from transformer_dropout.kernels.cross_entropy import linear_cross_entropy


@pytest.fixture(autouse=True, params=[7 * 61, 10**6], ids=["chunks", "whole"])
def chunks(request, monkeypatch):
    monkeypatch.setattr(kernel, "PROCESSOR_LOGITS", request.param)
    monkeypatch.setattr(kernel, "DEVICE_LOGITS", request.param)
    torch.manual_seed(0)


def inputs(dtype=torch.float32, scale=1.0):
    x, weight = torch.randn(3, 11, 20) * scale, torch.randn(61, 20)
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), torch.randint(61, (3, 11))


def plain(x, weight, targets):
    return F.cross_entropy(F.linear(x, weight).flatten(0, 1).double(), targets.flatten())


def error(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def step(function, x, weight, targets, scale=1.0):
    loss = function(x, weight, targets)
    gradients = torch.autograd.grad(scale * loss, (x, weight))
    return loss, *gradients


def test_loss_and_gradients_in_float32():
    x, weight, targets = inputs()
    exact = step(
        plain, x.detach().double().requires_grad_(), weight.detach().double().requires_grad_(), targets, 3
    )
    for found, wanted in zip(step(linear_cross_entropy, x, weight, targets, 3), exact, strict=True):
        assert found.dtype == torch.float32
        assert error(found, wanted) < 1e-6


@pytest.mark.parametrize("autocast", [False, True])
def test_loss_and_gradients_in_bfloat16(autocast):
    x, weight, targets = inputs(torch.float32 if autocast else torch.bfloat16)

    def ours(*tensors):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return linear_cross_entropy(*tensors)

    found = step(ours, x, weight, targets)
    exact = step(
        plain, x.detach().double().requires_grad_(), weight.detach().double().requires_grad_(), targets
    )
    assert found[0].dtype == torch.float32
    for one, wanted in zip(found, exact, strict=True):
        assert error(one, wanted) < 1e-2
    rounded = F.linear(x.bfloat16(), weight.bfloat16()).flatten(0, 1).double()
    assert found[0].item() == pytest.approx(F.cross_entropy(rounded, targets.flatten()).item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_vocabulary_filled_up_as_on_a_gpu_changes_nothing(dtype, monkeypatch):
    x, weight, targets = inputs(dtype)
    expected = step(linear_cross_entropy, x, weight, targets, 3)
    monkeypatch.setattr(kernel, "on_gpu", lambda x: True)
    widths = set()
    linear = kernel.linear
    monkeypatch.setattr(kernel, "linear", lambda x, w: widths.add(max(len(x), len(w))) or linear(x, w))
    for found, wanted in zip(step(linear_cross_entropy, x, weight, targets, 3), expected, strict=True):
        assert found.shape == wanted.shape
        assert error(found, wanted) < 1e-6
    assert 64 in widths
    assert 61 not in widths


def test_gradcheck():
    x, weight, targets = inputs(torch.float64)
    assert torch.autograd.gradcheck(lambda x, weight: linear_cross_entropy(x, weight, targets), (x, weight))


def test_logits_beyond_every_exponential_give_the_exact_loss():
    x, weight, targets = inputs(scale=1e4)
    found, exact = (step(f, x, weight, targets) for f in (linear_cross_entropy, plain))
    assert found[0].item() > 1e4
    for one, wanted in zip(found, exact, strict=True):
        assert error(one, wanted) < 1e-6


def test_a_loss_that_is_not_finite_is_told():
    x, weight, targets = inputs()
    with torch.no_grad():
        x[0, 0, 0] = torch.nan
    assert linear_cross_entropy(x, weight, targets).isnan()


def test_without_gradients_none_is_made(monkeypatch):
    x, weight, targets = inputs()
    calls = []
    monkeypatch.setattr(kernel, "linear", lambda *tensors: calls.append(1) or F.linear(*tensors))
    with torch.no_grad():
        loss = linear_cross_entropy(x, weight, targets)
    assert loss.item() == pytest.approx(plain(x, weight, targets).item(), rel=1e-6)
    forward_only = len(calls)
    linear_cross_entropy(x, weight.detach(), targets).backward()
    assert weight.grad is None
    assert error(x.grad, step(plain, x, weight, targets)[1]) < 1e-6
    assert len(calls) == 3 * forward_only  # logits once more, and the gradient of x alone


def test_a_graph_can_be_walked_twice():
    x, weight, targets = inputs()
    loss = linear_cross_entropy(x, weight, targets)
    first = torch.autograd.grad(loss, (x, weight), retain_graph=True)
    second = torch.autograd.grad(2 * loss, (x, weight))
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close(2 * one, two)


def test_who_counts_operations_sees_those_of_the_plain_formula():
    x, weight, targets = inputs()
    with FlopCounterMode(display=False) as counter:
        linear_cross_entropy(x, weight, targets).backward()
    assert counter.get_total_flops() == 3 * 2 * 33 * 20 * 61
