"""Causal attention with dropout, in native loops and in chunks of heads, against the formula written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from transformer_dropout.kernels import attention as kernel
from transformer_dropout.kernels._native import numba_installed, pure_pytorch
from transformer_dropout.kernels.attention import ChunkedAttention, NativeAttention, causal_attention
from transformer_dropout.kernels.dropout import mask_numbers
from transformer_dropout.kernels.random import draw_key, random_bits

PATHS = {"chunks": ChunkedAttention, "native": NativeAttention}


@pytest.fixture(params=PATHS)
def attend(request, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(kernel, "WEIGHTS", 5000)  # some, not all heads at once
    if request.param == "native" and not numba_installed():
        pytest.skip("numba is not installed")
    return PATHS[request.param].apply


def written_out(query, key, value, p, random_key):
    tokens = query.shape[-2]
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    scores = scores.masked_fill(torch.ones(tokens, tokens, dtype=torch.bool).triu(1), -math.inf)
    weights = scores.softmax(-1)
    if p:
        threshold, scale = mask_numbers(p)
        kept = (random_bits(random_key, weights.numel()) >= threshold).view(weights.shape)
        weights = weights * kept * scale
    return weights @ value


def inputs(batch=2, heads=3, tokens=37, size=13, dtype=torch.float32):
    """Return q, k, v as views of one projection, as models have them, and a gradient of the output."""
    qkv = torch.randn(batch, tokens, 3, heads, size).to(dtype)
    return qkv, torch.randn(batch, tokens, heads, size).to(dtype).transpose(1, 2)


def step(function, qkv, gradient, *others):
    qkv = qkv.clone().requires_grad_()
    mixed = function(*qkv.permute(2, 0, 3, 1, 4), *others)
    mixed.backward(gradient)
    return mixed, qkv.grad


def error(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize(
    "shape", [(2, 3, 37, 13), (1, 2, 64, 16), (2, 1, 5, 40), (1, 1, 1, 3), (1, 2, 100, 8)]
)
def test_results_and_gradients_are_those_of_the_formula(attend, dtype, p, shape):
    qkv, gradient = inputs(*shape, dtype)
    key = draw_key()
    found = step(attend, qkv, gradient, p, key)
    expected = step(written_out, qkv.double(), gradient.double(), p, key)
    for one, wanted in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert error(one, wanted) < (1e-6 if dtype == torch.float32 else 1e-2)


def test_gradcheck_of_the_chunks():
    qkv = torch.randn(1, 5, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    key = draw_key()
    assert torch.autograd.gradcheck(
        lambda qkv: ChunkedAttention.apply(*qkv.permute(2, 0, 3, 1, 4), 0.3, key), (qkv,)
    )


def test_a_later_token_changes_nothing_before_it(attend):
    qkv, _ = inputs(tokens=70)
    key, changed = draw_key(), qkv.clone()
    changed[:, 40:] = 1e3 * torch.randn_like(changed[:, 40:])
    before, after = (attend(*x.permute(2, 0, 3, 1, 4), 0.2, key) for x in (qkv, changed))
    assert torch.equal(before[:, :, :40], after[:, :, :40])
    assert not torch.equal(before[:, :, 40:], after[:, :, 40:])


def test_scores_beyond_every_exponential(attend):
    qkv, gradient = inputs()
    qkv[:, :, :2] *= 100
    found = step(attend, qkv, gradient, 0.0, draw_key())
    expected = step(written_out, qkv.double(), gradient.double(), 0.0, None)
    assert expected[0].abs().max() < 10
    for one, wanted in zip(found, expected, strict=True):
        assert error(one, wanted) < 1e-4


def test_the_share_of_weights_dropped_is_p_in_every_head_and_row(attend):
    batch, heads, tokens = 4, 8, 64
    query = torch.zeros(batch, heads, tokens, tokens)
    # Equal weights and unit vectors as values: the output shows each weight.
    value = torch.eye(tokens).expand(batch, heads, tokens, tokens)
    weights = attend(query, query, value, 0.3, draw_key())
    visible = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    dropped = (weights == 0).double()
    assert abs(dropped[..., visible].mean() - 0.3) < 0.01
    assert ((dropped * visible).sum((0, 1)).sum(-1) / visible.sum(-1) / 32)[20:].sub(0.3).abs().max() < 0.1
    per_head = dropped[..., visible].flatten(0, 1) - 0.3
    correlation = per_head @ per_head.T / (per_head.shape[1] * 0.21)
    assert correlation.fill_diagonal_(0).abs().max() < 5 / per_head.shape[1] ** 0.5
    expected = torch.ones(tokens) / torch.arange(1, tokens + 1) / 0.7
    assert torch.allclose(weights.amax(-1)[0, 0, 5:], expected[5:])


def test_dropping_all_gives_zeros_and_no_gradient(attend):
    qkv, gradient = inputs()
    for found in step(attend, qkv, gradient, 1.0, draw_key()):
        assert found.count_nonzero() == 0


@pytest.mark.parametrize("pure", [True, False])
def test_a_recomputation_draws_the_same_mask(pure):
    qkv, gradient = inputs(tokens=20)
    found = []
    for attend in (causal_attention, lambda *a: checkpoint(causal_attention, *a, use_reentrant=False)):
        torch.manual_seed(2)
        if pure:
            with pure_pytorch():
                found.append(step(attend, qkv, gradient, 0.5))
        else:
            found.append(step(attend, qkv, gradient, 0.5))
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


def test_pure_and_native_draw_the_same_mask():
    query, key, value = inputs(dtype=torch.bfloat16)[0].permute(2, 0, 3, 1, 4)
    torch.manual_seed(2)
    first = causal_attention(query, key, value, 0.5)
    torch.manual_seed(2)
    with pure_pytorch(), torch.autocast("cpu", torch.bfloat16):
        second = causal_attention(query, key, value, 0.5)
    assert first.dtype == second.dtype == torch.bfloat16
    assert error(first, second.double()) < 1e-2


def test_other_tensors_take_the_attention_of_pytorch():
    query, key, value = inputs()[0].double().permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert torch.equal(causal_attention(query, key, value), expected)
    assert causal_attention(*(t.to("meta") for t in (query, key, value)), 0.2).shape == query.shape
    assert causal_attention(query[:, :, -4:].float(), key.float(), value.float()).shape == (2, 3, 4, 13)
