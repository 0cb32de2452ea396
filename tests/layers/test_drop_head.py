import pytest
import torch

from transformer_dropout.errors import InputError
from transformer_dropout.layers import DropHead

HEADS = 4


def dropped(p, batch, seed=0):
    torch.manual_seed(seed)
    x = torch.full((batch, HEADS, 3, 5), 2.0)
    return x, DropHead(p)(x)


def test_a_head_is_dropped_as_a_whole_for_one_sample():
    _, y = dropped(0.3, 3000)
    assert torch.equal(y[:, :, :1, :1].expand_as(y), y)
    zero = (y[:, :, 0, 0] == 0).float()
    assert abs(zero.mean() - 0.3) < 0.021  # five standard errors
    assert (zero.std(dim=0) > 0).all()  # every head loses its turn
    assert (zero.std(dim=1) > 0).any()  # and not all heads together


def test_the_heads_that_are_kept_make_up_for_the_others():
    x, y = dropped(0.5, 500)
    kept = (y[:, :, 0, 0] != 0).sum(dim=1)
    assert set(kept.tolist()) == set(range(HEADS + 1))
    for count in range(1, HEADS + 1):
        values = y[kept == count]
        torch.testing.assert_close(
            values[values != 0], torch.full_like(values[values != 0], 2 * HEADS / count)
        )
    some = kept > 0
    # Summed over heads, nothing has changed: only which heads say it.
    torch.testing.assert_close(y[some].sum(dim=1), x[some].sum(dim=1))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_the_expectation_misses_only_the_draws_without_a_head(p):
    x, y = dropped(p, 200_000)
    assert (y / x).mean().item() == pytest.approx(1 - p**HEADS, abs=0.01)


def test_it_refuses_a_tensor_without_heads_in_training_and_evaluation():
    for layer in (DropHead(0.1), DropHead(0.1).eval()):
        with pytest.raises(InputError, match="3 dimensions; use it at attention_weights"):
            layer(torch.ones(2, 5, 8))
