import math

import pytest
import torch

from transformer_dropout import functional


def by_hand(query, key, value, causal, padding_mask):
    """Attend one query at a time, over the keys it may see."""
    batch, heads, tokens, size = query.shape
    result = torch.zeros_like(value)
    for b in range(batch):
        for h in range(heads):
            for t in range(tokens):
                seen = [
                    s
                    for s in range(t + 1 if causal else tokens)
                    if s == t or padding_mask is None or padding_mask[b, s]
                ]
                scores = [math.exp(query[b, h, t] @ key[b, h, s] / math.sqrt(size)) for s in seen]
                for score, s in zip(scores, seen, strict=True):
                    result[b, h, t] += score / sum(scores) * value[b, h, s]
    return result


def projections(batch=3, heads=2, tokens=5, size=4):
    torch.manual_seed(0)
    return torch.randn(3, batch, heads, tokens, size, dtype=torch.float64)


@pytest.fixture
def padding_mask():
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[0, 3:] = mask[1, :2] = mask[2] = False  # behind, in front, everything
    return mask


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_attention_equals_the_explicit_sum(causal, padded, padding_mask):
    query, key, value = projections()
    mask = padding_mask if padded else None
    result = functional.attention(query, key, value, causal=causal, padding_mask=mask)
    torch.testing.assert_close(result, by_hand(query, key, value, causal, mask))


def test_a_padding_mask_of_zeros_and_ones_is_as_good_as_a_boolean_one(padding_mask):
    query, key, value = projections()
    results = [
        functional.attention(query, key, value, causal=True, padding_mask=mask)
        for mask in (padding_mask, padding_mask.long(), padding_mask.float())
    ]
    assert all(torch.equal(result, results[0]) for result in results)


def test_a_mask_without_padding_changes_nothing():
    query, key, value = projections()
    full = torch.ones(3, 5, dtype=torch.bool)
    with_mask = functional.attention(query, key, value, causal=True, padding_mask=full)
    torch.testing.assert_close(with_mask, functional.attention(query, key, value, causal=True))


def test_self_attention_splits_q_then_k_then_v_and_each_into_heads():
    query, key, value = projections()
    qkv = torch.cat([part.transpose(1, 2).flatten(2) for part in (query, key, value)], dim=-1)
    result = functional.self_attention(qkv, 2, causal=True)
    expected = functional.attention(query, key, value, causal=True).transpose(1, 2).flatten(2)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("p", [0.0, 0.25, 0.9])
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_dropout_drops_at_rate_p_and_scales_the_rest(p, kind):
    torch.manual_seed(0)
    x = torch.full((300, 300), 2.0, requires_grad=True)
    y = functional.dropout(x, kind(p))
    kept = y != 0
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 2 / (1 - p)))
    assert abs(kept.float().mean() - (1 - p)) < 0.01  # over five standard errors
    y.sum().backward()
    torch.testing.assert_close(x.grad, kept / (1 - p))


@pytest.mark.parametrize("p", [1.0, torch.tensor(1.0), 1, torch.tensor(1.0, dtype=torch.float16)], ids=str)
def test_dropout_with_p_one_gives_zeros_and_zero_gradients(p):
    x = torch.randn(50, 50, requires_grad=True)
    y = functional.dropout(x, p)
    y.sum().backward()
    assert y.count_nonzero() == 0
    assert x.grad.count_nonzero() == 0
    assert y.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_dropout_keeps_the_dtype(dtype, kind):
    assert functional.dropout(torch.ones(9, dtype=dtype), kind(0.5)).dtype == dtype


def test_a_small_rate_still_drops_in_half_precision():
    # Noise in the input's own dtype has 2^-8 steps in bfloat16, far too coarse for this rate.
    torch.manual_seed(0)
    y = functional.dropout(torch.ones(4_000_000, dtype=torch.bfloat16), torch.tensor(1e-3))
    assert (y == 0).float().mean().item() == pytest.approx(1e-3, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_straight_through_is_exactly_hard_with_the_gradient_of_soft(dtype):
    torch.manual_seed(0)
    soft = torch.rand(10_000).to(dtype).requires_grad_()
    hard = (torch.rand(10_000) < 0.5).to(dtype)
    result = functional.straight_through(hard, soft)
    assert torch.equal(result, hard)
    weights = torch.randn(10_000).to(dtype)
    (result * weights).sum().backward()
    assert torch.equal(soft.grad, weights)


def test_the_cosine_keep_probability_runs_from_one_to_zero():
    shift = torch.tensor([0.0, math.pi / 2, math.pi])
    torch.testing.assert_close(
        functional.cosine_keep_probability(torch.zeros(3), shift), torch.tensor([1.0, 0.5, 0.0])
    )
    moved = functional.cosine_keep_probability(torch.full((3,), 0.7), shift)
    torch.testing.assert_close(moved, torch.cos((0.7 + shift) / 2) ** 2)  # the same, by the half angle


def test_the_penalties_of_a_known_mask():
    keep = torch.tensor([0.0, 0.5, 1.0])
    assert functional.squared_penalty(keep).item() == pytest.approx(1.25 / 6)
    assert functional.linear_penalty(keep).item() == pytest.approx(0.5)
    assert functional.entropy_penalty(keep).item() == pytest.approx(math.log(2) / 3, abs=1e-5)


@pytest.mark.parametrize(
    "function",
    [functional.squared_penalty, functional.linear_penalty, functional.entropy_penalty],
)
def test_the_gradients_of_the_penalties_are_right(function):
    torch.manual_seed(0)
    keep = (0.05 + 0.9 * torch.rand(4, 5, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(function, keep)


@pytest.mark.parametrize("queries", [1, 2, 4])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_fewer_queries_than_keys_sit_on_the_last_keys(queries, causal, padded, padding_mask):
    query, key, value = projections()
    mask = padding_mask if padded else None
    whole = functional.attention(query, key, value, causal=causal, padding_mask=mask)
    last = functional.attention(query[:, :, -queries:], key, value, causal=causal, padding_mask=mask)
    torch.testing.assert_close(last, whole[:, :, -queries:])


class Past:
    """Remembers keys and values as a cache does."""

    def __init__(self):
        self.kept = None

    def extend(self, key, value):
        new = key, value
        self.kept = new if self.kept is None else tuple(map(lambda *t: torch.cat(t, 2), self.kept, new))
        return self.kept


def test_self_attention_goes_on_from_what_it_remembers(padding_mask):
    qkv = torch.randn(3, 5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = functional.self_attention(qkv, 2, causal=True, padding_mask=padding_mask)
    parts = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    by_parts = functional.attention(*parts, causal=True, padding_mask=padding_mask)
    torch.testing.assert_close(whole, by_parts.transpose(1, 2).flatten(2))
    past, found = Past(), []
    for part in qkv.split([2, 1, 2], dim=1):
        seen = sum(each.shape[1] for each in found) + part.shape[1]
        mask = padding_mask[:, :seen]
        found.append(functional.self_attention(part, 2, causal=True, padding_mask=mask, past=past))
    torch.testing.assert_close(torch.cat(found, 1), whole)


def test_a_sampled_mask_keeps_with_its_probability_and_is_straight_through():
    torch.manual_seed(0)
    keep = torch.tensor([0.0, 0.25, 0.75, 1.0]).repeat(20_000, 1).requires_grad_()
    mask = functional.sampled_mask(keep)
    assert mask.shape == keep.shape and set(mask.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(mask.mean(0), keep[0].detach(), atol=0.02, rtol=0)
    assert mask[:, 0].count_nonzero() == 0 and mask[:, 3].all()
    weights = torch.randn(20_000, 4)
    (mask * weights).sum().backward()
    assert torch.equal(keep.grad, weights)


def test_the_least_of_all_draws_does_not_keep_what_is_never_kept(monkeypatch):
    monkeypatch.setattr(functional.random, "uniform", lambda key, count: torch.zeros(count))
    assert functional.sampled_mask(torch.tensor([0.0, 2.0**-24])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_thresholded_mask_keeps_from_one_half_on_and_is_straight_through(dtype):
    keep = torch.tensor([0.0, 0.49, 0.5, 1.0], dtype=dtype, requires_grad=True)
    mask = functional.thresholded_mask(keep)
    assert mask.dtype == dtype and mask.tolist() == [0.0, 0.0, 1.0, 1.0]
    (mask * torch.arange(4.0).to(dtype)).sum().backward()
    assert keep.grad.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_probabilities_and_entropies_of_half_precision_are_computed_in_float32():
    half = torch.tensor([0.1, 0.9], dtype=torch.bfloat16)
    probability = functional.cosine_keep_probability(half, torch.zeros(2))
    assert probability.dtype == torch.float32
    torch.testing.assert_close(probability, functional.cosine_keep_probability(half.float(), torch.zeros(2)))
    assert functional.entropy_penalty(half).dtype == torch.float32
    assert functional.entropy_penalty(half) == functional.entropy_penalty(half.float())
    bare = functional.cosine_keep_probability(half, torch.zeros(2, dtype=torch.bfloat16))
    assert bare.dtype == torch.float32
