import pytest
import torch

from transformer_dropout.errors import InputError
from transformer_dropout.layers import TokenDropout


def test_a_token_loses_all_channels_or_none():
    torch.manual_seed(0)
    y = TokenDropout(0.25)(torch.full((60, 70, 8), 3.0))
    assert torch.equal(y[..., :1].expand_as(y), y)
    assert set(y.unique().tolist()) == {0.0, 4.0}
    zero = (y[..., 0] == 0).float()
    assert abs(zero.mean() - 0.25) < 0.034  # five standard errors
    assert (zero.std(dim=0) > 0).all()  # tokens of one sample are drawn apart, and samples too
    assert (zero.std(dim=1) > 0).all()


def test_it_refuses_what_is_no_sequence_of_embeddings():
    for layer in (TokenDropout(0.1), TokenDropout(0.1).eval()):
        with pytest.raises(InputError, match="4 dimensions; use it at embedding"):
            layer(torch.ones(2, 4, 5, 5))
