import math

import pytest
import torch

from transformer_dropout.errors import InputError
from transformer_dropout.layers import GaussianNoise


def test_the_noise_has_the_standard_deviation_asked_for_and_no_mean():
    torch.manual_seed(0)
    x = torch.linspace(-5, 5, 200_000)
    noise = GaussianNoise(0.3)(x) - x
    assert noise.std().item() == pytest.approx(0.3, rel=0.01)
    assert noise.mean().item() == pytest.approx(0, abs=0.0035)  # five standard errors
    assert torch.corrcoef(torch.stack([noise, x]))[0, 1].abs() < 0.012


def test_it_is_the_identity_in_evaluation_and_without_noise():
    x = torch.randn(20)
    assert torch.equal(GaussianNoise(0.3).eval()(x), x)
    assert torch.equal(GaussianNoise(0.0)(x), x)


def test_the_gradient_passes_unchanged():
    x = torch.randn(20, requires_grad=True)
    GaussianNoise(0.3)(x).sum().backward()
    assert torch.equal(x.grad, torch.ones(20))


@pytest.mark.parametrize("std", [-0.1, math.nan, math.inf])
def test_what_is_no_standard_deviation_is_refused(std):
    with pytest.raises(InputError, match="0 or more"):
        GaussianNoise(std)


def test_it_is_shown():
    assert repr(GaussianNoise(0.3)) == "GaussianNoise(std=0.3)"
