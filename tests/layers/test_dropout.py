import math

import pytest
import torch

from transformer_dropout.errors import InputError
from transformer_dropout.layers import Dropout


def test_the_share_dropped_is_p_and_the_rest_is_scaled():
    torch.manual_seed(0)
    x = torch.full((400, 400), 3.0)
    y = Dropout(0.25)(x)
    assert set(y.unique().tolist()) == {0.0, 4.0}
    assert abs((y == 0).float().mean() - 0.25) < 0.005  # five standard errors


def test_the_gradient_is_the_mask_times_the_scale():
    torch.manual_seed(0)
    x = torch.randn(50, 50, requires_grad=True)
    y = Dropout(0.5)(x)
    y.sum().backward()
    assert torch.equal(x.grad, torch.where(y == 0, 0.0, 2.0))


def test_set_rate_moves_the_float_and_the_tensor_together():
    layer = Dropout(0.1)
    buffer = layer.rate
    layer.set_rate(0.7)
    assert layer.p == 0.7
    assert layer.rate is buffer  # the same storage, which a compiled graph has captured
    assert buffer.item() == pytest.approx(0.7)


def test_a_moved_rate_is_the_one_that_acts():
    layer, x = Dropout(0.0), torch.ones(100)
    layer.set_rate(1.0)
    assert layer(x).count_nonzero() == 0
    layer.set_rate(0.0)
    assert torch.equal(layer(x), x)


@pytest.mark.parametrize("p", [-0.01, 1.01, math.nan])
def test_what_is_no_probability_is_refused_and_changes_nothing(p):
    with pytest.raises(InputError, match="between 0 and 1"):
        Dropout(p)
    layer = Dropout(0.3)
    with pytest.raises(InputError, match="between 0 and 1"):
        layer.set_rate(p)
    assert layer.p == 0.3
    assert layer.rate.item() == pytest.approx(0.3)


def test_the_rate_is_not_saved_and_is_shown():
    assert Dropout(0.3).state_dict() == {}
    assert repr(Dropout(0.3)) == "Dropout(p=0.3)"


def test_it_has_no_penalty():
    layer = Dropout(0.3)
    layer(torch.ones(3))
    assert not layer.has_penalty
    with pytest.raises(InputError):
        layer.take_penalty()


def test_in_evaluation_it_returns_what_it_is_given():
    x = torch.ones(100)
    assert Dropout(0.5).eval()(x) is x
