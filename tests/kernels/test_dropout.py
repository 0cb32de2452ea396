"""Dropout from a key and an index: the mask's statistics, and that the backward draws the same one."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import transformer_dropout as td
from transformer_dropout.kernels._native import numba_installed, pure_pytorch
from transformer_dropout.kernels.dropout import CounterDropout, dropout, mask_numbers
from transformer_dropout.kernels.random import CHUNK, draw_key, random_bits


@pytest.fixture(autouse=True, params=["pure", "native"])
def path(request):
    torch.manual_seed(0)
    if request.param == "native":
        if not numba_installed():
            pytest.skip("numba is not installed")
        yield
    else:
        with pure_pytorch():
            yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
@pytest.mark.parametrize("shape", [(3, 7), (70_000,), (2, 5, 3)])
def test_each_element_is_kept_or_dropped_as_its_bits_say(dtype, shape):
    key, x = draw_key(), torch.randn(shape).to(dtype)
    threshold, scale = mask_numbers(0.3)
    kept = (random_bits(key, x.numel()) >= threshold).view(shape)
    y = CounterDropout.apply(x, 0.3, key)
    assert y.dtype == dtype
    assert torch.equal(y == 0, ~kept)
    torch.testing.assert_close(y[kept], x[kept] * scale)


@pytest.mark.parametrize("p", [0.01, 0.2, 0.5, 0.9])
def test_the_rate_is_p_and_the_mean_is_kept(p):
    y = dropout(torch.ones(400_000), p)
    deviation = (p * (1 - p) / y.numel()) ** 0.5
    assert abs((y == 0).double().mean().item() - p) < 5 * deviation
    assert y.double().mean().item() == pytest.approx(1, abs=5 * deviation / (1 - p))


def test_masks_of_rows_and_of_calls_are_independent():
    p, rows = 0.3, (dropout(torch.ones(64, 20_000), 0.3) == 0).float()
    centred = torch.cat([rows, (dropout(torch.ones(64, 20_000), p) == 0).float()]) - p
    correlation = centred @ centred.T / (20_000 * p * (1 - p))
    assert (correlation - torch.eye(128)).fill_diagonal_(0).abs().max() < 5.5 / 20_000**0.5
    neighbours = (centred[:, 1:] * centred[:, :-1]).mean() / (p * (1 - p))
    assert neighbours.abs() < 5 / centred.numel() ** 0.5


def test_the_same_seed_gives_the_same_mask_and_the_next_call_another():
    x, masks = torch.ones(1000), []
    for _ in range(2):
        torch.manual_seed(3)
        masks.append((dropout(x, 0.5), dropout(x, 0.5)))
    assert torch.equal(masks[0][0], masks[1][0])
    assert not torch.equal(masks[0][0], masks[0][1])


def test_the_gradient_goes_through_the_same_mask_and_nothing_but_the_key_is_kept():
    x, kept = torch.randn(300, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        y = dropout(x, 0.4)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, torch.where(y == 0, 0.0, 1 / 0.6))
    assert kept == [2]


def test_gradcheck_of_both_orders():
    x, key = torch.randn(40, dtype=torch.float64, requires_grad=True), draw_key()
    assert torch.autograd.gradcheck(lambda x: CounterDropout.apply(x, 0.3, key), (x,))
    assert torch.autograd.gradgradcheck(lambda x: CounterDropout.apply(x, 0.3, key).pow(3), (x,))


def test_a_recomputation_draws_the_same_mask():
    x, results = torch.randn(500, requires_grad=True), []
    for run in (lambda x: dropout(x, 0.5), lambda x: checkpoint(dropout, x, 0.5, use_reentrant=False)):
        torch.manual_seed(1)
        results.append(torch.autograd.grad(run(x).square().sum(), x)[0])
    assert torch.equal(*results)


def test_the_ends_are_exact():
    x = torch.randn(10_000)
    assert dropout(x, 0.0) is x
    assert dropout(x, 1.0).count_nonzero() == 0
    assert dropout(torch.randn(0, 3), 0.5).shape == (0, 3)


def test_any_memory_layout_gives_the_same_mask():
    x, ones = torch.randn(30, 40), []
    for view in (x, x.t().contiguous().t(), x.repeat(1, 2)[:, :40]):
        torch.manual_seed(5)
        ones.append(dropout(view, 0.5))
    assert torch.equal(ones[0], ones[1])
    assert torch.equal(ones[0], ones[2])


def test_what_is_not_a_number_stays_so_where_it_is_kept():
    y = dropout(torch.full((1000,), torch.nan), 0.5)
    assert y.isnan().any()


def test_who_switches_dropout_off_or_watches_it_sees_it():
    layer, x = td.Dropout(0.5), torch.ones(1000)
    with td.disabled(layer):
        assert torch.equal(layer(x), x)
    (event,) = td.audit(layer, x).events
    assert event.operation == "transformer_dropout.drawn_dropout"
    assert event.measured == pytest.approx(0.5, abs=0.1)


def test_masks_go_on_beyond_the_first_chunk():
    n = 2 * CHUNK + 1000
    key = draw_key()
    dropped = CounterDropout.apply(torch.ones(n), 0.4, key) == 0
    assert torch.equal(dropped, random_bits(key, n) < mask_numbers(0.4)[0])
    assert 0.35 < (dropped[:1000] != dropped[CHUNK : CHUNK + 1000]).float().mean() < 0.6
