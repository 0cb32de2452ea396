import math

import pytest
import torch

from transformer_dropout.errors import InputError
from transformer_dropout.layers import Standout


def layer(width=6, **words):
    torch.manual_seed(0)
    made = Standout(width, **words)
    torch.nn.init.normal_(made.gate.weight)
    return made


def test_evaluation_scales_by_the_probability_of_keeping():
    standout, x = layer(alpha=0.7, beta=0.4).eval(), torch.randn(3, 5, 6)
    keep = 1 / (1 + torch.exp(-(0.7 * x @ standout.gate.weight.T + 0.4)))
    torch.testing.assert_close(standout(x), x * keep)


def test_the_mean_over_training_draws_is_the_evaluation():
    standout, x = layer(), torch.randn(1, 6)
    draws = standout(x.expand(100_000, 6))
    assert ((draws == 0) | (draws == x)).all()
    torch.testing.assert_close(draws.mean(dim=0, keepdim=True), standout.eval()(x), atol=0.02, rtol=0)


def test_the_gradient_of_the_gate_passes_straight_through_the_mask():
    standout, x = layer(), torch.randn(50, 6)
    standout(x).sum().backward()
    keep = torch.sigmoid(x @ standout.gate.weight.T)
    expected = (x * keep * (1 - keep)).T @ x
    torch.testing.assert_close(standout.gate.weight.grad, expected)


def test_without_alpha_the_bias_decides_alone():
    standout, x = layer(alpha=0.0, beta=math.log(9)).eval(), torch.randn(4, 6)
    torch.testing.assert_close(standout(x), 0.9 * x)


def test_it_shows_masks_to_an_observer():
    standout, seen = layer(), []
    standout.observer = lambda keep, mask: seen.append((keep, mask))
    standout(torch.randn(2, 6))
    standout.eval()(torch.randn(2, 6))
    assert set(seen[0][1].unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(seen[1][0], seen[1][1])


def test_a_width_without_units_is_refused():
    with pytest.raises(InputError, match="at least 1"):
        Standout(0)


def test_the_gate_is_one_matrix_of_small_weights():
    torch.manual_seed(0)
    standout = Standout(64)
    assert list(standout.state_dict()) == ["gate.weight"]
    assert standout.gate.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert Standout(1)(torch.ones(3, 1)).shape == (3, 1)
