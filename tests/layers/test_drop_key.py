import math

import pytest
import torch

from transformer_dropout.layers import DropKey

TOKENS = 6
LATER = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)


def scores(dtype=torch.float32, batch=400):
    torch.manual_seed(0)
    return (3 * torch.randn(batch, 2, TOKENS, TOKENS)).to(dtype)


def weights(values, p):
    return DropKey(p)(values).softmax(dim=-1)


def test_the_weights_that_are_left_still_sum_to_one_in_their_old_proportions():
    values = scores()
    before, after = values.softmax(dim=-1), weights(values, 0.3)
    torch.testing.assert_close(after.sum(dim=-1), torch.ones(400, 2, TOKENS))
    gone = after == 0
    assert abs(gone.float().mean() - 0.3) < 0.02
    kept = before.masked_fill(gone, 0.0)
    # A row that lost every key has even weights instead, none of them 0.
    rows = gone.any(dim=-1)
    assert rows.float().mean() > 0.8
    torch.testing.assert_close(after[rows], (kept / kept.sum(dim=-1, keepdim=True))[rows])


@pytest.mark.parametrize("lowest", [-math.inf, "finite"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("p", [0.5, 0.95, 1.0])
def test_no_draw_shows_a_key_that_the_mask_hides(lowest, dtype, p):
    hidden = torch.finfo(dtype).min if lowest == "finite" else lowest
    after = weights(scores(dtype).masked_fill(LATER, hidden), p)
    assert after.isfinite().all()
    assert after[..., LATER].count_nonzero() == 0
    torch.testing.assert_close(after.float().sum(dim=-1), torch.ones(400, 2, TOKENS), atol=0.02, rtol=0)


def test_a_query_without_keys_attends_evenly_to_what_it_may_see():
    after = weights(scores().masked_fill(LATER, -math.inf), 1.0)
    even = torch.ones(TOKENS, TOKENS).tril() / torch.arange(1, TOKENS + 1)[:, None]
    torch.testing.assert_close(after, even.expand_as(after))


def test_a_dropped_score_has_no_gradient_and_a_kept_one_all_of_it():
    values = scores().requires_grad_()
    result = DropKey(0.4)(values)
    result.sum().backward()
    assert torch.equal(values.grad, (result == values).float())


def test_it_says_that_it_acts_on_scores():
    assert DropKey.acts_on == "scores"


def test_a_small_rate_is_met_in_half_precision_too():
    torch.manual_seed(0)
    changed = DropKey(0.001)(torch.zeros(1000, 1000, dtype=torch.bfloat16)) != 0
    assert changed.float().mean().item() == pytest.approx(0.001, rel=0.2)
