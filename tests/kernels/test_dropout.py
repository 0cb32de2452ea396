import pytest
import torch

from transformer_dropout.kernels._native import numba_installed, pure_pytorch
from transformer_dropout.kernels.dropout import dropout

P = 0.3


def test_the_rate_and_the_mean_are_right():
    torch.manual_seed(0)
    y = dropout(torch.ones(1000, 1000), P)
    assert abs((y == 0).float().mean().item() - P) < 0.002
    assert y.unique().tolist() == pytest.approx([0.0, 1 / (1 - P)])


def test_rows_and_columns_are_independent():
    torch.manual_seed(0)
    kept = (dropout(torch.ones(2000, 64), P) != 0).double()
    for pair in ((kept[:-1], kept[1:]), (kept[:, :-1], kept[:, 1:])):
        assert abs(torch.corrcoef(torch.stack([side.flatten() for side in pair]))[0, 1].item()) < 0.02
    assert kept.mean(dim=0).sub(1 - P).abs().max().item() < 0.05


def test_a_seed_repeats_the_mask_and_the_next_call_does_not():
    torch.manual_seed(3)
    first, second = dropout(torch.ones(500), P), dropout(torch.ones(500), P)
    torch.manual_seed(3)
    assert torch.equal(dropout(torch.ones(500), P), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_gradient_has_the_mask_of_the_forward(dtype):
    x = torch.randn(300, 70, dtype=dtype, requires_grad=True)
    y = dropout(x, P)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient * x, y)
    assert torch.equal(gradient == 0, y == 0)


def test_nothing_as_large_as_the_input_is_kept():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        dropout(torch.randn(1000, requires_grad=True), P)
    assert sum(tensor.numel() for tensor in kept) == 2


def test_the_ends_are_identity_and_zeros():
    x = torch.randn(50)
    assert dropout(x, 0.0) is x
    assert not dropout(x, 1.0).any()


@pytest.mark.skipif(not numba_installed(), reason="needs numba")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_and_pure_masks_are_the_same(dtype):
    x = torch.randn(70_000, dtype=dtype)
    torch.manual_seed(1)
    native = dropout(x, P)
    torch.manual_seed(1)
    with pure_pytorch():
        pure = dropout(x, P)
    assert torch.equal(native, pure)
