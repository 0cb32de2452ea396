"""Products that skip what a mask drops: equal to the dense ones, and blind to what is dropped."""

import pytest
import torch

from transformer_dropout.kernels._native import numba_installed, pure_pytorch
from transformer_dropout.kernels.row_skipping import kept_columns, kept_rows, skips_natively

KEPT = {
    "some": lambda n: torch.arange(n) % 3 == 0,
    "all": lambda n: torch.ones(n, dtype=torch.bool),
    "none": lambda n: torch.zeros(n, dtype=torch.bool),
}


@pytest.fixture(params=["pure", "native"])
def path(request):
    if request.param == "native":
        if not numba_installed():
            pytest.skip("numba is not installed")
        yield request.param
        return
    with pure_pytorch():
        yield request.param


def matrix(rows=37, columns=53, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, columns, generator=generator, dtype=dtype)


@pytest.mark.parametrize("kept", KEPT)
def test_kept_rows_are_those_of_the_dense_product(path, kept):
    weight, mask = matrix(), KEPT[kept](37)
    x = torch.linspace(-1, 1, 53)
    assert skips_natively(weight, x, mask) == (path == "native")
    expected = (weight.double() @ x.double()) * mask
    weight[~mask] = torch.nan
    torch.testing.assert_close(kept_rows(weight, x, mask).double(), expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("block", [1, 4, 27])
def test_kept_columns_are_the_dense_product_of_a_masked_vector(path, kept, block):
    weight, mask = matrix(37, 108), KEPT[kept](108 // block)
    x, units = torch.linspace(-1, 1, 108), mask.repeat_interleave(block)
    expected = weight.double() @ (x * units).double()
    weight[:, ~units], x[~units] = torch.nan, torch.nan
    torch.testing.assert_close(kept_columns(weight, x, mask).double(), expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize(("product", "masked"), [(kept_rows, 37), (kept_columns, 53)])
def test_gradients_go_through_pytorch(product, masked):
    weight, mask = matrix(dtype=torch.float64).requires_grad_(), KEPT["some"](masked)
    x = torch.linspace(-1, 1, 53, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda w, v: product(w, v, mask), (weight, x))
    single = matrix().requires_grad_()
    product(single, x.detach().float(), mask).sum().backward()
    gradient = single.grad if product is kept_rows else single.grad.t()
    assert gradient[1].count_nonzero() == 0 < gradient[0].count_nonzero()


@pytest.mark.parametrize(
    "change",
    [
        lambda w, x, k: (w.bfloat16(), x.bfloat16(), k),
        lambda w, x, k: (w.t().contiguous().t(), x, k),
        lambda w, x, k: (w, x, k.repeat_interleave(2)[::2]),
    ],
    ids=["bfloat16", "transposed", "strided mask"],
)
def test_what_native_code_cannot_read_is_left_to_pytorch(change):
    weight, x, mask = change(matrix(), torch.linspace(-1, 1, 53), KEPT["some"](37))
    assert not skips_natively(weight, x, mask)
    expected = (weight.double() @ x.double()) * mask
    torch.testing.assert_close(kept_rows(weight, x, mask).double(), expected, atol=0.2, rtol=0)
