"""The kernels of mask_triton.py in Triton's interpreter, against pure PyTorch with the same key."""

import math

import pytest
import torch
import triton
import triton.language as tl

from transformer_dropout.functional import straight_through
from transformer_dropout.kernels import mask, mask_triton
from transformer_dropout.kernels.random import uniform

KEY = torch.tensor([-1234567, 987654321], dtype=torch.int32)
# Casts of the interpreter cut a bfloat16 off where a GPU rounds it.
ERROR = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def inputs(rows, width, dtype=torch.float32, seed=0):
    """Return x, gate, shift and the gradient of y, with angles of more than one turn."""
    generator = torch.Generator().manual_seed(seed)
    x, gate, dy = (torch.randn(rows, width, generator=generator) for _ in range(3))
    shift = torch.rand(width, generator=generator) * math.pi
    return x.to(dtype), (3 * gate).to(dtype), shift, dy.to(dtype)


def relative_error(found, expected):
    found, expected = found.double(), expected.double()
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(
    ("rows", "width", "dtype", "penalty"),
    [
        (20, 33, torch.float32, "squared"),
        (5, 128, torch.float32, "linear"),
        (17, 48, torch.bfloat16, "squared"),
        (9, 7, torch.float16, None),
        (1, 1, torch.float32, "squared"),
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("key", [KEY, None], ids=["sample", "threshold"])
def test_output_penalty_and_gradients_are_those_of_pure_pytorch(rows, width, dtype, penalty, weighted, key):
    x, gate, shift, dy = inputs(rows, width, dtype)
    weight = (torch.arange(rows) % 3 != 1).float() if weighted else None
    scale = None if penalty is None else torch.tensor(0.3)
    y, kept, total = mask_triton.masked(x, gate, shift, key, penalty, weight, keep=True)
    pure_y, pure_kept, pure_total = mask.masked(x, gate, shift, key, penalty, weight, keep=True)
    assert torch.equal(y, pure_y)
    torch.testing.assert_close(total, pure_total, rtol=1e-6, atol=0)
    found = mask_triton.gradients(dy, scale, x, gate, shift, kept, penalty, weight)
    expected = mask.gradients(dy, scale, x, gate, shift, pure_kept, penalty, weight)
    assert torch.equal(found[0], expected[0])
    assert relative_error(found[1], expected[1]) < ERROR[dtype]
    assert relative_error(found[2], expected[2]) < 1e-6


def test_gradients_are_those_of_the_formula_in_float64():
    x, gate, shift, dy = inputs(12, 20)
    _, key, _ = mask_triton.masked(x, gate, shift, KEY, None, None, keep=True)
    found = mask_triton.gradients(dy, torch.tensor(0.7), x, gate, shift, key, "squared", None)
    exact = [tensor.double().requires_grad_() for tensor in (x, gate, shift)]
    probability = 0.5 * torch.cos(exact[1] + exact[2]) + 0.5
    hard = (uniform(KEY, x.numel()).view_as(x) < probability).double()
    y = exact[0] * straight_through(hard, probability)
    loss = (y * dy.double()).sum() + 0.7 * probability.square().sum() / 2
    for ours, expected in zip(found, torch.autograd.grad(loss, exact), strict=True):
        assert relative_error(ours, expected) < 1e-6


@triton.jit
def angles_kernel(u_ptr, probability_ptr, slope_ptr, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    rest, odd = mask_triton.reduced(tl.load(u_ptr + place), 0.0)
    tl.store(probability_ptr + place, mask_triton.keep_probability(rest, odd))
    tl.store(slope_ptr + place, mask_triton.slope(rest, odd))


def angles(u):
    probability, slope = torch.empty_like(u), torch.empty_like(u)
    angles_kernel[(1,)](u, probability, slope, SIZE=len(u))
    return probability, slope


def test_probability_and_slope_are_exact_to_a_few_roundings_even_where_they_vanish():
    near = torch.linspace(-4.7, 4.7, 4096)
    # The floats around 0 and pi, where the published shifts start and the slope is smallest.
    tiny = 10.0 ** torch.linspace(-7, -1, 2048)
    for u in (near, torch.cat([tiny, -tiny]), torch.cat([math.pi + tiny, math.pi - tiny])):
        probability, slope = angles(u)
        exact = u.double()
        torch.testing.assert_close(probability.double(), (exact / 2).cos().square(), rtol=5e-7, atol=1e-14)
        torch.testing.assert_close(slope.double(), -exact.sin() / 2, rtol=5e-7, atol=1e-14)


@pytest.mark.filterwarnings("ignore:invalid value")  # NumPy's, on the way from infinity to NaN
def test_angles_of_any_size_give_a_probability_and_nan_stays_nan():
    u = torch.tensor([1e7, -1e9, 1e20, math.inf, -math.inf, math.nan, 0.0, 100.0])
    probability, slope = angles(u)
    assert probability.isnan().tolist() == [False] * 3 + [True] * 3 + [False] * 2
    finite = ~probability.isnan()
    assert bool(((probability[finite] >= 0) & (probability[finite] <= 1)).all())
    assert bool((slope[finite].abs() <= 0.5 + 1e-7).all())
    x, gate = torch.ones(1, 8), u[None]
    y, _, _ = mask_triton.masked(x, gate, torch.zeros(8), KEY, None, None, keep=False)
    assert y.isnan().tolist() == [probability.isnan().tolist()]


@triton.jit
def draws_kernel(start_ptr, key_ptr, mask_ptr, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    below, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    half = tl.full((ROWS, COLUMNS), 0.5, tl.float32)
    kept = mask_triton.zero_or_one(half, key_ptr, tl.load(start_ptr), below, width, column)
    tl.store(mask_ptr + below * width + column, kept)


@pytest.mark.parametrize("start", [0, 12345, 2**31 - 20, 2**32 - 20, 3 * 2**33 + 7])
def test_the_index_of_an_element_counts_modulo_2_to_the_32(start):
    kept = torch.zeros(8, 16)
    draws_kernel[(1,)](torch.tensor([start]), KEY, kept, 16, ROWS=8, COLUMNS=16)
    assert torch.equal(kept.flatten() > 0, uniform(KEY, 128, start % 2**32) < 0.5)


@pytest.mark.parametrize("programs", [1, 2, 5])
def test_how_rows_are_shared_among_programs_changes_no_bit_of_the_mask(programs, monkeypatch):
    x, gate, shift, dy = inputs(300, 16)
    y, _, total = mask_triton.masked(x, gate, shift, KEY, "squared", None, keep=False)
    expected = mask_triton.gradients(dy, torch.tensor(0.1), x, gate, shift, KEY, "squared", None)
    monkeypatch.setattr(mask_triton, "PROGRAMS", programs)
    assert mask_triton.plan_for(300, 16).tiles == {1: 5, 2: 2, 5: 1}[programs]
    shared_y, _, shared_total = mask_triton.masked(x, gate, shift, KEY, "squared", None, keep=False)
    found = mask_triton.gradients(dy, torch.tensor(0.1), x, gate, shift, KEY, "squared", None)
    assert torch.equal(shared_y, y)
    torch.testing.assert_close(shared_total, total, rtol=1e-6, atol=0)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[2], expected[2], rtol=1e-5, atol=1e-6)


def through_autograd(x, gate, shift, padding_mask, gradients):
    """Return the output, the penalty and the gradients that a user sees, of one or both of those two."""
    leaves = [tensor.clone().requires_grad_() for tensor in (x, gate, shift)]
    y, penalty = mask.learned_mask(*leaves, key=KEY, penalty="squared", padding_mask=padding_mask)
    pairs = [
        (output, given) for output, given in zip((y, penalty), gradients, strict=True) if given is not None
    ]
    torch.autograd.backward(*zip(*pairs, strict=True))
    return y, penalty, *(leaf.grad for leaf in leaves)


@pytest.mark.parametrize("used", ["output", "penalty", "both"])
def test_the_operation_uses_it_as_a_third_implementation(used, monkeypatch):
    x, gate, shift, dy = inputs(16, 24)
    padding_mask = (torch.arange(8) < 6).expand(2, 8)
    gradients = (
        (None if used == "penalty" else dy.view(2, 8, 24)),
        (None if used == "output" else torch.tensor(0.5)),
    )
    arguments = x.view(2, 8, 24), gate.view(2, 8, 24), shift, padding_mask, gradients
    monkeypatch.setattr(mask, "native_loops", lambda *tensors: None)
    pure = through_autograd(*arguments)
    monkeypatch.setattr(mask, "native_loops", lambda *tensors: mask_triton)
    for found, expected in zip(through_autograd(*arguments), pure, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)


def test_a_backward_it_does_not_take_has_the_same_mask_in_pure_pytorch(monkeypatch):
    x, gate, shift, dy = inputs(6, 24)
    x.requires_grad_()
    monkeypatch.setattr(mask, "native_loops", lambda *tensors: mask_triton)
    y, _ = mask.learned_mask(x, gate, shift, key=KEY)
    monkeypatch.setattr(mask, "native_loops", lambda *tensors: None)
    (gradient,) = torch.autograd.grad(y, x, dy)
    assert torch.equal(gradient, dy * (y != 0))


def test_no_rows_give_no_rows():
    x, gate, shift, dy = inputs(0, 8)
    y, _, total = mask_triton.masked(x, gate, shift, KEY, "squared", None, keep=True)
    assert y.shape == (0, 8) and total == 0
    found = mask_triton.gradients(dy, torch.ones(()), x, gate, shift, KEY, "squared", None)
    assert [tuple(gradient.shape) for gradient in found] == [(0, 8), (0, 8), (8,)]
    assert not found[2].any()
