from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from transformer_dropout.kernels._native import numba_installed, pure_pytorch
from transformer_dropout.kernels.attention import causal_attention

PATHS = [
    "pure",
    pytest.param("native", marks=pytest.mark.skipif(not numba_installed(), reason="needs numba")),
]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=PATHS)
def path(request):
    with pure_pytorch() if request.param == "pure" else nullcontext():
        yield request.param


def projections(tokens=21, size=16, dtype=torch.float32):
    torch.manual_seed(0)
    shape = (2, 3, tokens, size)
    return [torch.randn(shape).to(dtype).requires_grad_() for _ in range(3)]


def mask_of(p, tokens, seed):
    """Read the weights' mask off: with equal scores and one-hot values the result is the weights."""
    torch.manual_seed(seed)
    zeros = torch.zeros(2, 3, tokens, tokens)
    weights = causal_attention(zeros, zeros, torch.eye(tokens).expand(2, 3, -1, -1).contiguous(), p)
    return (weights != 0).double()


@pytest.mark.parametrize("tokens", [1, 21, 130])
def test_without_a_rate_it_is_attention(path, tokens):
    inputs = projections(tokens)
    gradient = torch.randn_like(inputs[0])
    found = causal_attention(*inputs)
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    exact = F.scaled_dot_product_attention(*wide, is_causal=True)
    assert ((found - exact).norm() / exact.norm()).item() < 1e-6
    pairs = zip(
        torch.autograd.grad(found, inputs, gradient),
        torch.autograd.grad(exact, wide, gradient.double()),
        strict=True,
    )
    for one, other in pairs:
        assert (one - other).norm().item() <= 1e-6 * max(other.norm().item(), gradient.norm().item())


@pytest.mark.parametrize("p", [0.2, 0.7])
def test_result_and_gradients_under_a_mask_are_those_of_the_formula(path, p):
    tokens, inputs = 24, projections(24)
    mask = mask_of(p, tokens, seed=5)
    torch.manual_seed(5)
    found = causal_attention(*inputs, p)
    query, key, value = wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    scores = query @ key.mT / query.shape[-1] ** 0.5
    hidden = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    exact = (scores.masked_fill(hidden, -torch.inf).softmax(-1) * mask / (1 - p)) @ value
    assert ((found - exact).norm() / exact.norm()).item() < 1e-6
    gradient = torch.randn_like(found)
    pairs = zip(
        torch.autograd.grad(found, inputs, gradient),
        torch.autograd.grad(exact, wide, gradient.double()),
        strict=True,
    )
    for one, other in pairs:
        assert ((one - other).norm() / other.norm()).item() < 2e-6


def test_weights_drop_at_the_rate_and_differ_between_heads(path):
    tokens, p = 96, 0.25
    mask = mask_of(p, tokens, seed=1)
    seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    assert abs(1 - mask[..., seen].mean().item() - p) < 0.01
    heads = mask.flatten(0, 1)[:, seen]
    off = torch.corrcoef(heads) - torch.eye(len(heads), dtype=torch.float64)
    assert off.abs().max().item() < 0.06


def test_all_weights_dropped_are_zeros(path):
    inputs = projections()
    out = causal_attention(*inputs, 1.0)
    assert not out.any()
    assert not any(gradient.any() for gradient in torch.autograd.grad(out.sum(), inputs))


def test_bfloat16_is_close_to_float32(path):
    inputs = projections(dtype=torch.bfloat16)
    torch.manual_seed(2)
    found = causal_attention(*inputs, 0.2)
    torch.manual_seed(2)
    exact = causal_attention(*(tensor.detach().float() for tensor in inputs), 0.2)
    assert found.dtype == torch.bfloat16
    assert ((found.float() - exact).norm() / exact.norm()).item() < 1e-2


@pytest.mark.skipif(not numba_installed(), reason="needs numba")
def test_native_and_pure_drop_the_same_weights():
    native = mask_of(0.3, 40, seed=9)
    with pure_pytorch():
        assert torch.equal(mask_of(0.3, 40, seed=9), native)
