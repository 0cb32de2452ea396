import torch

from transformer_dropout.layers import LearnedSigmoidDropout, LearnedSigmoidStraightThrough

WIDTH, HEADS = 8, 2


def layer(kind):
    torch.manual_seed(0)
    built = kind(WIDTH, HEADS, shift=1.5)
    torch.nn.init.normal_(built.qkv.weight, std=0.6)
    return built


def test_its_output_is_the_soft_threshold():
    straight, exact = layer(LearnedSigmoidStraightThrough), layer(LearnedSigmoidDropout)
    x = torch.randn(3, 5, WIDTH)
    assert torch.equal(straight(x), exact(x))
    assert torch.equal(straight.eval()(x), exact.eval()(x))


def test_its_gradient_is_that_of_multiplying_by_the_probability():
    built, x = layer(LearnedSigmoidStraightThrough), torch.randn(3, 5, WIDTH)
    weights = torch.randn(3, 5, WIDTH)
    (built(x) * weights).sum().backward()
    found = built.qkv.weight.grad.clone()
    built.zero_grad()
    (x * built.keep_probability(built.gate(x)) * weights).sum().backward()
    torch.testing.assert_close(found, built.qkv.weight.grad)
    exact = layer(LearnedSigmoidDropout)
    (exact(x) * weights).sum().backward()
    assert not torch.allclose(found, exact.qkv.weight.grad, rtol=0.1)
