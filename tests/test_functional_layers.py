import pytest
import torch

from transformer_dropout import functional


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_the_inverse_of_keep_is_zero_where_nothing_is_kept(kind):
    values = [float(functional.inverse_keep(kind(p))) for p in (0.0, 0.5, 0.75, 1.0)]
    assert values == [1.0, 2.0, 4.0, 0.0]


def test_the_inverse_of_keep_acts_on_each_element():
    rates = torch.tensor([0.0, 1.0, 0.5])
    assert torch.equal(functional.inverse_keep(rates), torch.tensor([1.0, 0.0, 2.0]))


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_a_group_is_dropped_or_kept_as_one(kind):
    torch.manual_seed(0)
    x = torch.full((2000, 3, 4), 3.0, requires_grad=True)
    y = functional.group_dropout(x, kind(0.25), (2000, 1, 4))
    assert torch.equal(y[:, :1].expand_as(y), y)
    assert set(y.unique().tolist()) == {0.0, 4.0}
    assert abs((y == 0).float().mean() - 0.25) < 0.025  # five standard errors of 8,000 draws
    y.sum().backward()
    assert torch.equal(x.grad, torch.where(y == 0, 0.0, 4 / 3))


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_groups_at_both_ends_of_the_rate(kind):
    x = torch.randn(5, 6)
    assert torch.equal(functional.group_dropout(x, kind(0.0), (5, 1)), x)
    assert functional.group_dropout(x, kind(1.0), (5, 1)).count_nonzero() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_groups_keep_the_dtype(dtype):
    x = torch.ones(3, 4, dtype=dtype)
    assert functional.group_dropout(x, torch.tensor(0.5), (3, 1)).dtype == dtype


def test_dropout_takes_one_rate_a_channel():
    torch.manual_seed(0)
    rates = torch.tensor([0.0, 0.2, 0.8, 1.0])
    y = functional.dropout(torch.ones(50_000, 4), rates)
    torch.testing.assert_close((y == 0).float().mean(dim=0), rates, atol=0.01, rtol=0)
    torch.testing.assert_close(y.amax(dim=0), torch.tensor([1.0, 1.25, 5.0, 0.0]))
