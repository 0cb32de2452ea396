import pytest
import torch

from transformer_dropout.layers import AlphaDropout
from transformer_dropout.layers.alpha_dropout import SATURATION, alpha_dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_mean_and_variance_of_a_normal_input_stay(p, kind):
    torch.manual_seed(0)
    y = alpha_dropout(torch.randn(400_000), kind(p))
    assert y.mean().item() == pytest.approx(0, abs=0.01)
    assert y.var().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_tensor_form_takes_the_two_values_that_torch_takes(p):
    torch.manual_seed(0)
    x = torch.full((20_000,), 2.0)
    by_torch, by_tensor = alpha_dropout(x, p), alpha_dropout(x, torch.tensor(p))
    torch.testing.assert_close(by_tensor.unique(), by_torch.unique())
    assert len(by_torch.unique()) == 2
    share = [(y == y.min()).float().mean().item() for y in (by_torch, by_tensor)]
    assert share == [pytest.approx(p, abs=0.02)] * 2


def test_the_formula():
    p = 0.3
    slope = ((1 - p) * (1 + p * SATURATION**2)) ** -0.5
    torch.manual_seed(0)
    y = AlphaDropout(p)(torch.full((1000,), 2.0))
    low, high = slope * SATURATION * (1 - p), slope * (2 - p * SATURATION)
    torch.testing.assert_close(y.unique(), torch.tensor([low, high]))


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_gradients_reach_kept_elements_only(kind):
    x = torch.randn(1000, requires_grad=True)
    alpha_dropout(x, kind(0.5)).sum().backward()
    assert 300 < x.grad.count_nonzero() < 700
    assert len(x.grad.unique()) == 2
