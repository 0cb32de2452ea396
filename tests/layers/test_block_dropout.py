import math

import pytest
import torch
import torch.nn.functional as F

from transformer_dropout.errors import InputError
from transformer_dropout.kernels._native import numba_installed, pure_pytorch
from transformer_dropout.kernels.block_products import Product, TwoProducts
from transformer_dropout.layers import LearnedBlockDropout, block_dropout
from transformer_dropout.layers.block_dropout import apply_blocks, draw_blocks

INPUTS, WIDTH, BLOCK = 8, 24, 6
BLOCKS = WIDTH // BLOCK
ESTIMATORS = ("dense", "kept", "weighted", "sampled")


def layer(**arguments):
    """Build a layer whose masks differ from token to token."""
    torch.manual_seed(3)
    built = LearnedBlockDropout(WIDTH, BLOCK, inputs=INPUTS, rank=4, **arguments)
    for weight in (built.down, built.up):
        torch.nn.init.normal_(weight, std=0.8)
    return built


def mlp(dtype=torch.float32):
    torch.manual_seed(4)

    def leaf(*shape):
        return torch.randn(*shape, dtype=dtype).requires_grad_()

    first, second = Product(leaf(WIDTH, INPUTS), leaf(WIDTH)), Product(leaf(INPUTS, WIDTH), leaf(INPUTS))
    return TwoProducts(first, F.gelu, second)


def example(tokens=7, dtype=torch.float32):
    torch.manual_seed(5)
    return torch.randn(2, tokens, INPUTS, dtype=dtype)


def observed(built, *arguments):
    """Run a forward; return the result, the keep probability and the mask."""
    seen = []
    built.observer = lambda *pair: seen.append(pair)
    out = built(*arguments)
    built.observer = None
    assert len(seen) == 1
    return out, *seen[0]


@pytest.fixture(params=["skipped", "masked"])
def way(request, monkeypatch):
    """Compute an MLP in one of two ways, whatever would take less time."""
    monkeypatch.setattr(block_dropout, "pays", lambda *arguments: request.param == "skipped")
    return request.param


@pytest.fixture
def ways(monkeypatch):
    """Return a function that says which of two ways forwards go from now on."""

    def choose(name):
        monkeypatch.setattr(block_dropout, "pays", lambda *arguments: name == "skipped")

    return choose


def test_the_keep_probability_is_the_formula():
    built, x = layer(shift=1.2), example()
    gate = F.gelu(x @ built.down.T) @ built.up.T
    _, keep_probability, _ = observed(built, x, mlp())
    torch.testing.assert_close(keep_probability, torch.cos((gate + 1.2) / 2) ** 2)


def test_hidden_units_are_multiplied_by_blocks_of_zeros_and_ones():
    built = LearnedBlockDropout(WIDTH, BLOCK)
    x = torch.randn(50, WIDTH)
    out, _, kept = observed(built, x)
    assert torch.equal(out, x * kept.repeat_interleave(BLOCK, dim=-1))
    assert 0 < kept.float().mean() < 1


def test_training_samples_the_mask_and_evaluation_rounds_the_probability(way):
    built, network = layer(), mlp()
    x = example(1)[:1].expand(1, 8000, INPUTS)
    _, keep_probability, kept = observed(built, x, network)
    error = (kept.float().mean(dim=(0, 1)) - keep_probability[0, 0]).abs()
    assert error.max() < 4 * 0.5 / math.sqrt(8000)
    out, keep_probability, kept = observed(built.eval(), x, network)
    assert torch.equal(kept, keep_probability >= 0.5)
    hidden = F.gelu(F.linear(x, *network.first[:2])) * kept.repeat_interleave(BLOCK, dim=-1)
    torch.testing.assert_close(out, F.linear(hidden, *network.second[:2]))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("autocast", [False, True])
def test_skipping_gives_what_masking_gives_with_all_gradients(estimator, autocast, ways):
    built, network = layer(estimator=estimator), mlp()
    results = []
    for name in ("masked", "skipped"):
        ways(name)
        x = example().requires_grad_()
        torch.manual_seed(7)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = built(x, network)
        loss = (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum() + 10 * built.take_penalty()
        leaves = [x, *network.first[:2], *network.second[:2], *built.parameters()]
        results.append([out.detach(), *torch.autograd.grad(loss, leaves)])
    assert built.computed < (1 if estimator != "dense" else 1.1)
    tolerance = {"rtol": 2e-2, "atol": 0.3} if autocast else {"rtol": 1e-5, "atol": 1e-5}
    for masked, skipped in zip(*results, strict=True):
        assert masked.dtype == skipped.dtype
        torch.testing.assert_close(skipped, masked, **tolerance)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("dense", lambda m: torch.ones_like(m)),
        ("kept", lambda m: m),
        ("weighted", lambda m: (10 * m).clamp_max(1)),
        ("sampled", lambda m: torch.ones_like(m)),
    ],
)
def test_the_factor_of_the_gradient_has_its_expectation(estimator, expected):
    torch.manual_seed(0)
    draws, keep_probability = 200_000, torch.tensor([0.02, 0.08, 0.3, 0.5, 0.9])
    _, factor = draw_blocks(keep_probability, torch.rand(draws, 5), torch.rand(draws, 1), estimator)
    error = (factor.mean(0) - expected(keep_probability)).abs()
    assert (error <= 4 * factor.std(0) / math.sqrt(draws)).all()


def test_only_what_is_computed_has_a_factor():
    torch.manual_seed(0)
    keep_probability, noise, token_noise = (torch.rand(20_000, n) for n in (5, 5, 1))
    for estimator in ("kept", "weighted"):
        kept, factor = draw_blocks(keep_probability, noise, token_noise, estimator)
        assert torch.equal(factor > 0, kept)
    assert factor.max() <= 10
    kept, factor = draw_blocks(keep_probability, noise, token_noise, "sampled")
    assert torch.equal(kept, noise < keep_probability)
    dropped = factor[~kept]
    assert set(dropped.unique().tolist()) == {0.0, 10.0}
    assert abs((dropped > 0).float().mean() - 0.1) < 0.01
    # All dropped blocks of a token, or none.
    assert torch.equal(((factor > 0) & ~kept).any(-1), ~kept.all(-1) & (token_noise < 0.1)[:, 0])


@pytest.mark.parametrize(
    ("estimator", "multiple"),
    [("kept", lambda m: m), ("weighted", lambda m: (10 * m).clamp_max(1)), ("sampled", lambda m: 1.0)],
)
def test_the_mean_of_skipped_gradients_is_that_of_the_dense_gradient(estimator, multiple, ways):
    # One token many times: a mean over draws. The loss is linear in the MLP's result, so that the gradient
    # of one block's mask does not depend on which other blocks were drawn.
    ways("skipped")
    draws, network = 20_000, mlp()
    x, weights = example(1)[:1].expand(1, draws, INPUTS), torch.linspace(-1, 1, INPUTS)
    gradients = {}
    for name in ("dense", estimator):
        built = layer(estimator=name)
        torch.manual_seed(0)
        keep_probability = built.keep_probability(x).detach().requires_grad_()
        built.keep_probability = lambda z, multiply, given=keep_probability: given
        gradients[name] = torch.autograd.grad((built(x, network) @ weights).sum(), keep_probability)[0][0]
    probability = keep_probability.detach()[0, 0]
    assert probability.min() < 0.1 < probability.max(), "clamped and not"
    mean, spread = gradients[estimator].mean(0), gradients[estimator].std(0)
    dense = gradients["dense"].mean(0) * multiple(probability)
    assert ((mean - dense).abs() <= 4 * spread / math.sqrt(draws) + 1e-5).all()
    assert spread.max() > 0.1


def test_sampled_gradients_have_the_dense_mean_for_any_loss(ways):
    ways("skipped")
    draws, network = 20_000, mlp()
    x = example(1)[:1].expand(1, draws, INPUTS)
    gradients = {}
    for name in ("dense", "sampled"):
        built = layer(estimator=name)
        keep_probability = built.keep_probability(x).detach().requires_grad_()
        built.keep_probability = lambda z, multiply, given=keep_probability: given
        torch.manual_seed(0)  # the same blocks are kept
        loss = built(x, network).square().sum()
        gradients[name] = torch.autograd.grad(loss, keep_probability)[0][0]
    difference = gradients["sampled"] - gradients["dense"]
    assert difference.abs().max() > 1
    assert (difference.mean(0).abs() <= 4 * difference.std(0) / math.sqrt(draws)).all()


def test_nothing_is_skipped_before_its_time(ways):
    ways("skipped")
    built, network, x = layer(skip_from=0.5), mlp(), example()
    for progress, computed in ((0.0, 1.0), (0.49, 1.0), (0.5, None), (1.0, None)):
        built.set_progress(progress)
        built(x, network)
        assert built.computed == computed or (computed is None and built.computed < 1)
    built.set_progress(0.0)
    soft = [torch.autograd.grad(built(x, network).square().sum(), built.shift)[0]]
    built.set_progress(1.0)
    soft.append(torch.autograd.grad(built(x, network).square().sum(), built.shift)[0])
    assert not torch.allclose(*soft)
    # In evaluation the mask is known and there is nothing to wait for.
    built.set_progress(0.0)
    built.eval()(x, network)
    assert built.computed < 1


def test_it_says_what_it_skipped(ways):
    built, network = layer(), mlp()
    assert "masked, not skipped" in repr(built)
    built.in_plain_mlp = True
    assert repr(built).endswith("dropped blocks: skipped)")
    late = layer(skip_from=0.5)
    late.in_plain_mlp = True
    assert repr(late).endswith("dropped blocks: skipped in evaluation)")
    ways("masked")
    built(example(), network)
    assert "computed last: 100%" in repr(built)
    ways("skipped")
    _, _, kept = observed(built, example(), network)
    assert f"computed last: {kept.float().mean():.0%}" in repr(built)
    assert "\n" not in repr(built)


def test_dense_products_are_taken_where_skipping_would_cost_time():
    built, network = layer(shift=0.0), mlp()
    torch.nn.init.zeros_(built.up)
    built(example(), network)
    assert built.computed == 1.0


def test_one_token_computes_its_own_blocks_only(ways):
    ways("skipped")
    built, network = layer().eval(), mlp()
    x = example()
    together = built(x, network)
    for token in range(x.shape[1]):
        torch.testing.assert_close(built(x[:1, token : token + 1], network)[0], together[:1, token])
        assert built.computed in [n / BLOCKS for n in range(BLOCKS + 1)]


@pytest.mark.skipif(not numba_installed(), reason="needs numba")
def test_one_token_without_gradients_never_reads_what_is_dropped():
    built, network = layer().eval(), mlp()
    x = example(tokens=1)[:1]
    expected, _, kept = observed(built, x, network)
    assert 0 < kept.sum() < BLOCKS
    dropped = ~kept.flatten().repeat_interleave(BLOCK)
    with torch.no_grad():
        network.first.weight[dropped] = torch.nan
        network.second.weight[:, dropped] = torch.nan
        torch.testing.assert_close(built(x, network), expected)
        assert built.computed == kept.float().mean()
        with pure_pytorch(), pytest.raises(AssertionError):
            # Its blocks are so small that the dense products take less time there.
            torch.testing.assert_close(built(x, network), expected)


def test_the_mask_is_exact_in_low_precision():
    for dtype in (torch.bfloat16, torch.float16):
        hidden = torch.ones(500, WIDTH, dtype=dtype)
        kept, soft = torch.rand(500, BLOCKS) < 0.5, torch.rand(500, BLOCKS).requires_grad_()
        out = apply_blocks(hidden, kept, soft)
        assert out.dtype == dtype
        assert set(out.unique().tolist()) == {0.0, 1.0}


def test_the_prediction_is_small():
    built = LearnedBlockDropout(3072, 128, inputs=768)
    count = sum(parameter.numel() for parameter in built.parameters())
    assert built.rank == 192
    assert 0.25 * 768**2 < count < 0.26 * 768**2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"block": 5}, "cannot be split into blocks of 5; write a number that divides 24, such as block=8"),
        ({"block": 0}, "blocks of 0"),
        ({"rank": 0}, "rank is 0"),
        ({"shift": 4.0}, "between 0 and pi"),
        ({"skip_from": 2.0}, "progress lies between 0 and 1"),
        ({"estimator": "wieghted"}, "Did you mean 'weighted'"),
        ({"penalty": "square"}, "Did you mean 'squared'"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, sentence):
    with pytest.raises(InputError, match=sentence.replace("(", "\\(")):
        LearnedBlockDropout(WIDTH, **({"block": BLOCK} | arguments))
