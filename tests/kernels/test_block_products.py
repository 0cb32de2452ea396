import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from transformer_dropout.kernels.block_products import (
    Product,
    TwoProducts,
    can_group,
    group,
    grouped_mlp,
    pays,
    times,
)
from transformer_dropout.kernels.linear import linear

TOKENS, WIDTH, BLOCKS, BLOCK = 60, 8, 4, 6
HIDDEN = BLOCKS * BLOCK


def problem(dtype=torch.float32, *, bias=True, transposed=False, multiply=F.linear):
    """Return input, MLP, mask and a tensor for the mask's gradient, everything a leaf."""
    torch.manual_seed(0)

    def leaf(*shape):
        return torch.randn(*shape, dtype=dtype).requires_grad_()

    def weight(out, entering):
        # As GPT-2 stores it, the other way round.
        return leaf(entering, out).t() if transposed else leaf(out, entering)

    mlp = TwoProducts(
        Product(weight(HIDDEN, WIDTH), leaf(HIDDEN) if bias else None, multiply),
        F.gelu,
        Product(weight(WIDTH, HIDDEN), leaf(WIDTH) if bias else None, multiply),
    )
    kept = torch.rand(TOKENS, BLOCKS) < 0.4
    kept[:, 2] = False  # a block that no token keeps
    kept[3] = False  # a token that keeps no block
    return leaf(TOKENS, WIDTH), mlp, kept, torch.rand(TOKENS, BLOCKS).requires_grad_()


def masked_mlp(x, mlp, kept, soft):
    """The plain formula: all hidden units, times a mask whose gradient passes straight through."""
    mask = kept.to(soft.dtype) + (soft - soft.detach())
    hidden = mlp.activation(F.linear(x, mlp.first.weight, mlp.first.bias))
    hidden = hidden * mask.to(hidden.dtype).repeat_interleave(BLOCK, dim=-1)
    return F.linear(hidden, mlp.second.weight, mlp.second.bias)


def gradients(out, x, mlp, soft):
    leaves = [x, mlp.first.weight, mlp.second.weight, soft]
    leaves += [product.bias for product in (mlp.first, mlp.second) if product.bias is not None]
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return torch.autograd.grad((out * weights).sum(), leaves)


@pytest.mark.parametrize("multiply", [F.linear, linear], ids=["torch", "onednn"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [False, True])
def test_result_and_gradients_are_those_of_the_masked_mlp(multiply, bias, transposed):
    x, mlp, kept, soft = problem(bias=bias, transposed=transposed, multiply=multiply)
    ours, plain = grouped_mlp(x, mlp, kept, soft, BLOCK), masked_mlp(x, mlp, kept, soft)
    torch.testing.assert_close(ours, plain)
    found, expected = gradients(ours, x, mlp, soft), list(gradients(plain, x, mlp, soft))
    # Only kept blocks were computed, so only their masks have a gradient.
    expected[3] = expected[3] * kept
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.0])
def test_probed_blocks_have_the_masked_mlps_gradient_and_change_nothing_else(transposed, share):
    x, mlp, kept, soft = problem(transposed=transposed)
    probed = ~kept & (torch.rand(TOKENS, BLOCKS) < share)
    ours, plain = grouped_mlp(x, mlp, kept, soft, BLOCK, probed), masked_mlp(x, mlp, kept, soft)
    torch.testing.assert_close(ours, plain)
    found, expected = gradients(ours, x, mlp, soft), list(gradients(plain, x, mlp, soft))
    expected[3] = expected[3] * (kept | probed)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_gradients_in_double_precision_are_those_of_finite_differences():
    x, mlp, kept, soft = problem(torch.float64)
    inputs = (x, mlp.first.weight, mlp.first.bias, mlp.second.weight, mlp.second.bias)

    def run(x, first, first_bias, second, second_bias):
        mlp = TwoProducts(Product(first, first_bias), torch.tanh, Product(second, second_bias))
        return grouped_mlp(x, mlp, kept, soft.detach(), BLOCK)

    assert torch.autograd.gradcheck(run, inputs)


def test_bfloat16_loses_no_more_over_many_blocks_than_one_product_does():
    torch.manual_seed(0)
    tokens, width, blocks = 40, 16, 64
    x = torch.randn(tokens, width, dtype=torch.bfloat16)
    mlp = TwoProducts(
        *(Product(torch.randn(blocks, width, dtype=torch.bfloat16)), F.gelu),
        Product(torch.randn(width, blocks, dtype=torch.bfloat16)),
    )
    kept = torch.ones(tokens, blocks, dtype=torch.bool)
    precise = TwoProducts(double(mlp.first), mlp.activation, double(mlp.second))
    exact = precise.second(precise.activation(precise.first(x.double())))
    error = (grouped_mlp(x, mlp, kept, kept.float(), 1).double() - exact).norm() / exact.norm()
    plain = (mlp.second(mlp.activation(mlp.first(x))).double() - exact).norm() / exact.norm()
    assert error < 1e-2
    assert error < 1.2 * plain


def double(product):
    return Product(product.weight.double())


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nothing_kept_and_everything_kept(share):
    x, mlp, _, soft = problem()
    kept = torch.full((TOKENS, BLOCKS), bool(share))
    out = grouped_mlp(x, mlp, kept, soft, BLOCK)
    torch.testing.assert_close(out, masked_mlp(x, mlp, kept, soft))
    found, expected = gradients(out, x, mlp, soft), gradients(masked_mlp(x, mlp, kept, soft), x, mlp, soft)
    torch.testing.assert_close(found[3], expected[3] * share, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-5)


def test_a_token_does_not_depend_on_the_others():
    x, mlp, kept, soft = problem()
    together = grouped_mlp(x, mlp, kept, soft, BLOCK)
    alone = [grouped_mlp(x[t : t + 1], mlp, kept[t : t + 1], soft[t : t + 1], BLOCK) for t in range(TOKENS)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_work_grows_with_what_is_kept():
    x, mlp, kept, soft = problem()
    flops = {}
    for name, mask in (("some", kept), ("all", torch.ones_like(kept))):
        with FlopCounterMode(display=False) as counter:
            grouped_mlp(x, mlp, mask, soft, BLOCK).sum().backward()
        flops[name] = counter.get_total_flops()
    # Two products forward, four backward, each of 2 * width * block a pair.
    assert flops["some"] == kept.sum() * 6 * 2 * WIDTH * BLOCK
    assert flops["all"] == kept.numel() * 6 * 2 * WIDTH * BLOCK
    with FlopCounterMode(display=False) as counter:
        grouped_mlp(x, mlp, kept, soft, BLOCK, ~kept).sum().backward()
    assert counter.get_total_flops() == (kept.sum() * 6 + (~kept).sum() * 2) * 2 * WIDTH * BLOCK


def test_frozen_weights_cost_no_products():
    x, mlp, kept, soft = problem()
    frozen = TwoProducts(
        Product(mlp.first.weight.detach(), None), F.gelu, Product(mlp.second.weight.detach(), None)
    )
    with FlopCounterMode(display=False) as counter:
        grouped_mlp(x, frozen, kept, soft, BLOCK).sum().backward()
    assert counter.get_total_flops() == kept.sum() * 4 * 2 * WIDTH * BLOCK


def test_pairs_are_grouped_by_block_and_then_by_token():
    chosen = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 0, 0]], dtype=torch.bool)
    rows = group(chosen, None, 2)
    assert (rows.tokens.tolist(), rows.blocks.tolist(), rows.kept) == ([0, 2, 0, 1], [0, 0, 2, 2], [2, 0, 2])
    assert [(part.rows.start, part.units.start, part.tokens.tolist()) for part in rows.parts()] == [
        (0, 0, [0, 2]),
        (2, 4, [0, 1]),
    ]
    probed = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=torch.bool)
    rows = group(chosen, probed, 2)
    assert rows.tokens.tolist() == [0, 2, 1, 0, 0, 1]
    assert [part.tokens.tolist() for part in rows.parts()] == [[0, 2, 1], [0], [0, 1]]
    assert [part.kept_tokens.tolist() for part in rows.parts()] == [[0, 2], [], [0, 1]]
    assert [part.kept for part in rows.parts()] == [slice(0, 2), slice(3, 3), slice(4, 6)]


def test_parts_of_a_weight_are_copied_for_a_fast_product_of_many_rows_only():
    seen = []

    def fast(x, weight, bias):
        seen.append(weight)
        return F.linear(x, weight, bias)

    whole = torch.randn(6, 40)
    for weight, copied in ((whole[2:4], False), (whole[2:4].t(), False), (whole[:, 1:9], True)):
        x = torch.randn(20, weight.shape[1])
        torch.testing.assert_close(times(fast, x, weight), x @ weight.t())
        assert (seen[-1].untyped_storage().data_ptr() != whole.untyped_storage().data_ptr()) == copied
    x = torch.randn(2, 8)
    torch.testing.assert_close(times(fast, x, whole[:, 1:9]), x @ whole[:, 1:9].t())
    assert len(seen) == 3


def test_pairs_cannot_be_grouped_where_values_are_not_known():
    assert can_group(torch.zeros(2))
    assert not can_group(torch.zeros(2), torch.zeros(2, device="meta"))
    assert not torch.func.vmap(lambda x: x * can_group(x))(torch.ones(2)).any()

    @torch.compile(backend="eager", fullgraph=True)
    def compiled(x):
        return x + 1 if can_group(x) else x

    assert torch.equal(compiled(torch.zeros(2)), torch.zeros(2))


def test_wider_blocks_pay_sooner():
    assert pays(0.6, 128, torch.float32)
    assert not pays(0.6, 64, torch.float32)
    assert pays(0.25, 32, torch.float32)
    assert not pays(0.9, 256, torch.float32)
    # Faster products leave less to be saved.
    assert not pays(0.6, 128, torch.bfloat16)
    assert pays(0.6, 256, torch.bfloat16)
