import pytest
import torch

from transformer_dropout.layers import Dropout, GaussianDropout
from transformer_dropout.layers.gaussian_dropout import gaussian_dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_the_factor_is_normal_with_the_variance_of_dropout(p, kind):
    torch.manual_seed(0)
    noise = gaussian_dropout(torch.ones(400_000), kind(p))
    deviation = (p / (1 - p)) ** 0.5
    assert noise.mean().item() == pytest.approx(1, abs=5 * deviation / 400_000**0.5)
    assert noise.std().item() == pytest.approx(deviation, rel=0.01)
    within = ((noise - 1).abs() < deviation).float().mean()
    assert within.item() == pytest.approx(0.6827, abs=0.005)  # one standard deviation of a normal


def test_it_has_the_first_two_moments_of_dropout():
    torch.manual_seed(0)
    x = torch.full((500_000,), 2.0)
    gaussian, plain = GaussianDropout(0.3)(x), Dropout(0.3)(x)
    assert gaussian.mean().item() == pytest.approx(plain.mean().item(), abs=0.02)
    assert gaussian.var().item() == pytest.approx(plain.var().item(), rel=0.02)


def test_the_gradient_is_the_noise():
    x = torch.full((50,), 3.0, requires_grad=True)
    y = GaussianDropout(0.5)(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach() / 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_a_rate_of_one_nothing_is_left_and_at_none_all(dtype):
    x = torch.full((50,), 3.0, dtype=dtype)
    assert not GaussianDropout(1.0)(x).any()
    assert GaussianDropout(0.0)(x).equal(x) and GaussianDropout(0.5)(x).dtype == dtype
