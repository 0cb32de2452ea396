import math

import pytest
import torch

from transformer_dropout.errors import InputError
from transformer_dropout.layers import ConcreteDropout
from transformer_dropout.layers.concrete_dropout import concrete_mask, rate_entropy
from transformer_dropout.recipe import Recipe, Rule
from transformer_dropout.surgery.regularize import regularize_
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig


def logit(p):
    return torch.tensor(math.log(p / (1 - p)))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_at_a_low_temperature_the_mask_is_that_of_dropout(p):
    torch.manual_seed(0)
    mask = concrete_mask(torch.ones(100_000), logit(p), temperature=1e-3)
    assert ((mask < 0.01) | (mask > 0.99)).float().mean() > 0.99
    assert mask.mean().item() == pytest.approx(1 - p, abs=0.01)


def test_the_soft_mask_keeps_about_the_expectation():
    torch.manual_seed(0)
    y = ConcreteDropout(initial_p=0.2)(torch.ones(200_000))
    # The relaxation is no exact Bernoulli draw; at the default temperature it is off by about a hundredth.
    assert y.mean().item() == pytest.approx(1, abs=0.02)


def test_the_entropy_is_the_definition_and_stays_finite():
    for p in (0.01, 0.3, 0.5, 0.99):
        assert rate_entropy(logit(p)).item() == pytest.approx(
            -p * math.log(p) - (1 - p) * math.log(1 - p), abs=1e-6
        )
    extreme = torch.tensor([-1e4, 1e4], requires_grad=True)
    rate_entropy(extreme).sum().backward()
    assert extreme.grad.isfinite().all()


def test_the_penalty_pulls_the_rate_towards_one_half():
    for initial in (0.1, 0.9):
        layer = ConcreteDropout(initial_p=initial)
        optimizer = torch.optim.SGD(layer.parameters(), lr=2.0)
        for _ in range(200):
            optimizer.zero_grad()
            layer(torch.ones(4))
            penalty = layer.take_penalty()
            assert penalty >= -1e-6
            penalty.backward()
            optimizer.step()
        assert layer.p == pytest.approx(0.5, abs=0.02)


def test_the_task_pulls_the_rate_down_where_noise_hurts():
    torch.manual_seed(0)
    layer = ConcreteDropout(initial_p=0.4)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        (layer(torch.ones(2000)) - 1).square().mean().backward()
        optimizer.step()
    assert layer.p < 0.1


def test_the_gradient_of_the_rate_is_that_of_finite_differences():
    x, start = torch.randn(500, dtype=torch.float64), 0.3

    def loss(value):
        torch.manual_seed(3)
        mask = concrete_mask(x, value, 0.3)
        return (x * mask * (1 + value.exp())).square().sum()

    value = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    loss(value).backward()
    step = 1e-2  # the noise is in single precision
    numeric = (loss(value.detach() + step) - loss(value.detach() - step)) / (2 * step)
    torch.testing.assert_close(value.grad, numeric, rtol=5e-3, atol=0)


def test_the_rate_is_readable_and_shown():
    layer = ConcreteDropout(initial_p=0.25)
    assert layer.p == pytest.approx(0.25)
    assert repr(layer) == "ConcreteDropout(p=0.25, temperature=0.1)"
    x = torch.randn(9)
    assert torch.equal(layer.eval()(x), x)


def test_it_trains_in_a_model_through_a_recipe():
    torch.manual_seed(0)
    model = Decoder(19, DecoderConfig(width=8, heads=2, blocks=2, context=6))
    reg = regularize_(model, Recipe([Rule("mlp_output", ConcreteDropout, weight=0.5, initial_p=0.3)]))
    tokens = torch.arange(12).view(2, 6)
    (model(tokens, tokens) + reg.penalty()).backward()
    assert all(placed.layer.logit.grad != 0 for placed in reg.placed)


@pytest.mark.parametrize("p", [0.0, 1.0, -1, math.nan])
def test_a_rate_that_cannot_learn_is_refused(p):
    with pytest.raises(InputError, match="strictly between 0 and 1"):
        ConcreteDropout(initial_p=p)


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(InputError, match="above 0"):
        ConcreteDropout(temperature=0)


def test_the_penalty_is_zero_at_one_half_and_largest_at_the_ends():
    for p, expected in ((0.5, 0.0), (0.1, math.log(2) + 0.1 * math.log(0.1) + 0.9 * math.log(0.9))):
        layer = ConcreteDropout(initial_p=p).train()
        layer(torch.ones(2, 2))
        assert layer.take_penalty().item() == pytest.approx(expected, abs=1e-6)


def test_half_precision_stays_what_it_is():
    assert ConcreteDropout().train()(torch.ones(4, dtype=torch.bfloat16)).dtype == torch.bfloat16
