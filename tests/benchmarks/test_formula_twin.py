"""LearnedDropout equals its slow twin, in its output, its mask, its penalty and every gradient."""

import math
from itertools import product

import pytest
import torch

from benchmarks.formula_twin import ReferenceLearnedDropout
from transformer_dropout.layers import LearnedDropout

WIDTH, HEADS, TOKENS, BATCH = 12, 3, 7, 3
MODES = ["train", "threshold", "mean", "sample"]
TOLERANCE = {
    torch.float32: {"rtol": 2e-5, "atol": 1e-5},
    torch.float64: {"rtol": 1e-12, "atol": 1e-13},
}


def pair(dtype, mode="train", **arguments):
    """Build both with the same weights, large enough for masks far from all ones."""
    torch.manual_seed(3)
    eval_mask = "threshold" if mode == "train" else mode
    fast = LearnedDropout(WIDTH, HEADS, eval_mask=eval_mask, **arguments).to(dtype)
    with torch.no_grad():
        fast.qkv.weight.normal_(std=0.6)
        fast.shift.uniform_(0.2, math.pi - 0.2)
        if fast.qkv.bias is not None:
            fast.qkv.bias.normal_(std=0.5)
    slow = ReferenceLearnedDropout(WIDTH, HEADS, eval_mask=eval_mask, **arguments).to(dtype)
    slow.load_state_dict(fast.state_dict(), strict=True)
    return fast.train(mode == "train"), slow.train(mode == "train")


def example(dtype, padded=False):
    """Return an input and a padding mask: padding behind, in front, and none."""
    torch.manual_seed(5)
    x = torch.randn(BATCH, TOKENS, WIDTH, dtype=dtype)
    padding_mask = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    padding_mask[0, 5:] = padding_mask[1, :2] = False
    return x, padding_mask if padded else None


def run(layer, x, padding_mask, penalty_weight=0.0):
    """Return output and gradients by name; the loss weighs every output element differently."""
    x = x.clone().requires_grad_()
    torch.manual_seed(11)
    output = layer(x, padding_mask)
    torch.manual_seed(12)
    loss = (output * torch.randn_like(output)).sum()
    if penalty_weight:
        penalty = layer.take_penalty() if isinstance(layer, LearnedDropout) else layer.last_penalty
        loss = loss + penalty_weight * penalty
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    return {"output": output.detach(), "loss": loss.detach(), "input": x.grad} | gradients


def assert_equal(fast, slow, dtype):
    assert fast.keys() == slow.keys()
    for name in fast:
        torch.testing.assert_close(
            fast[name], slow[name], **TOLERANCE[dtype], msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("causal", "padded", "detach"), list(product([True, False], repeat=3)))
@pytest.mark.parametrize("mode", MODES)
def test_output_and_every_gradient_equal_the_twins(dtype, mode, causal, padded, detach):
    fast, slow = pair(dtype, mode, causal=causal, detach=detach, bias=True)
    inputs = example(dtype, padded)
    results = run(fast, *inputs)
    assert_equal(results, run(slow, *inputs), dtype)
    assert all(value.count_nonzero() for value in results.values())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("penalty", ["squared", "linear", "entropy"])
def test_each_penalty_and_its_gradient_equal_the_twins(dtype, penalty, padded):
    fast, slow = pair(dtype, penalty=penalty)
    inputs = example(dtype, padded)
    with_penalty = run(fast, *inputs, penalty_weight=50.0)
    assert_equal(with_penalty, run(slow, *inputs, penalty_weight=50.0), dtype)
    without = run(pair(dtype, penalty=penalty)[0], *inputs)
    assert not torch.allclose(with_penalty["shift"], without["shift"], rtol=1e-2)


@pytest.mark.parametrize("mode", MODES)
def test_the_masks_themselves_are_equal(mode):
    fast, slow = pair(torch.float32, mode)
    seen = []
    fast.observer = lambda keep_probability, mask: seen.append(mask.detach())
    inputs = example(torch.float32)
    run(fast, *inputs)
    run(slow, *inputs)
    torch.testing.assert_close(seen[0], slow.last_mask.detach(), rtol=1e-5, atol=1e-6)
    assert 0.2 < seen[0].mean() < 0.8


def test_one_head_and_as_many_heads_as_channels_equal_the_twin():
    x, _ = example(torch.float64)
    for heads in (1, WIDTH):
        torch.manual_seed(heads)
        fast = LearnedDropout(WIDTH, heads, shift=1.0, eval_mask="mean").double().eval()
        slow = ReferenceLearnedDropout(WIDTH, heads, shift=1.0, eval_mask="mean").double().eval()
        slow.load_state_dict(fast.state_dict())
        assert_equal(run(fast, x, None), run(slow, x, None), torch.float64)


def test_the_twin_has_the_same_state_dict_with_and_without_a_bias():
    for bias in (False, True):
        layers = [kind(WIDTH, HEADS, bias=bias) for kind in (LearnedDropout, ReferenceLearnedDropout)]
        shapes = [{k: tuple(v.shape) for k, v in layer.state_dict().items()} for layer in layers]
        assert shapes[0] == shapes[1]
        assert set(shapes[0]) == {"qkv.weight", "shift"} | ({"qkv.bias"} if bias else set())


def test_both_start_from_the_same_weights_for_the_same_seed():
    layers = []
    for kind in (LearnedDropout, ReferenceLearnedDropout):
        torch.manual_seed(1)
        layers.append(kind(WIDTH, HEADS, shift=0.5, bias=True).state_dict())
    assert all(torch.equal(layers[0][name], layers[1][name]) for name in layers[0])
