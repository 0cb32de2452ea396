import pytest
import torch

from transformer_dropout.errors import InputError
from transformer_dropout.layers import LearnedSigmoidDropout

WIDTH, HEADS = 8, 2


def layer(kind=LearnedSigmoidDropout, **words):
    torch.manual_seed(0)
    built = kind(WIDTH, HEADS, shift=1.5, **words)
    torch.nn.init.normal_(built.qkv.weight, std=0.6)
    return built


def keep_probability(built, x):
    return built.keep_probability(built.gate(x))


@pytest.mark.parametrize("slope", [60.0, 7.0])
def test_it_multiplies_by_the_sigmoid_of_the_distance_from_one_half(slope):
    built, x = layer(slope=slope), torch.randn(3, 5, WIDTH)
    expected = x / (1 + torch.exp(-slope * (keep_probability(built, x) - 0.5)))
    torch.testing.assert_close(built(x), expected)
    torch.testing.assert_close(built.eval()(x), expected)


def test_the_gradient_is_that_of_the_formula():
    built, x = layer(slope=9.0), torch.randn(3, 5, WIDTH)
    built(x).square().sum().backward()
    found = built.shift.grad.clone()
    built.zero_grad()
    (x * torch.sigmoid(9.0 * (keep_probability(built, x) - 0.5))).square().sum().backward()
    torch.testing.assert_close(found, built.shift.grad)


def test_the_penalty_is_that_of_the_probability_and_not_of_the_mask():
    built, x = layer(), torch.randn(3, 5, WIDTH)
    built(x)
    torch.testing.assert_close(built.take_penalty(), keep_probability(built, x).square().mean() / 2)


def test_a_slope_that_is_not_above_zero_is_refused():
    with pytest.raises(InputError, match="slope is 0"):
        LearnedSigmoidDropout(WIDTH, HEADS, slope=0.0)


def test_its_arguments_are_those_of_the_gate():
    plain = LearnedSigmoidDropout(WIDTH, HEADS)
    assert (plain.slope, plain.causal, plain.penalty, plain.detach) == (60.0, True, "squared", False)
    assert plain.qkv.bias is None and plain.shift.tolist() == [0.0] * WIDTH
    words = {"shift": 0.5, "causal": False, "bias": True, "penalty": None, "detach": True}
    built = LearnedSigmoidDropout(WIDTH, HEADS, slope=0.25, **words)
    assert (built.slope, built.causal, built.penalty, built.detach) == (0.25, False, None, True)
    assert built.qkv.bias is not None and built.shift.tolist() == [0.5] * WIDTH
    assert built.extra_repr() == "width=8, heads=2, causal=False, slope=0.25"
