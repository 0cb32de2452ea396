"""The mask operation equals its formula, in PyTorch's operations and in native loops."""

import math
from contextlib import nullcontext

import pytest
import torch

from transformer_dropout import functional
from transformer_dropout.kernels import random
from transformer_dropout.kernels._native import numba_installed, pure_pytorch
from transformer_dropout.kernels.mask import learned_mask, takes_learned_mask
from transformer_dropout.kernels.random import draw_key, uniform
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

PATHS = {
    "pure": pure_pytorch,
    "native": pytest.param(
        nullcontext, marks=pytest.mark.skipif(not numba_installed(), reason="numba is not installed")
    ),
}
BOTH = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
PENALTIES = {"squared": functional.squared_penalty, "linear": functional.linear_penalty}


def example(dtype=torch.float32, shape=(5, 41, 19), scale=2.0, seed=0, x_dtype=None):
    """Return x, a gate and a shift: an odd width, more rows than one word has bits, masks of all kinds."""
    torch.manual_seed(seed)
    x, gate, shift = torch.randn(shape), torch.randn(shape) * scale, torch.rand(shape[-1]) * math.pi
    tensors = x.to(x_dtype or dtype), gate.to(dtype), shift.to(dtype)
    return [tensor.requires_grad_() for tensor in tensors]


def padding(shape):
    mask = torch.rand(shape[:-1], generator=torch.Generator().manual_seed(3)) < 0.7
    mask[0] = False
    return mask


def twin(x, gate, shift, key=None, penalty=None, padding_mask=None):
    """The formula in float64, but for the comparison with the draws."""
    probability = 0.5 * torch.cos(gate.double() + shift.double()) + 0.5
    hard = probability >= 0.5 if key is None else uniform(key, x.numel()).view_as(x) < probability
    mask = hard.double() + (probability - probability.detach())
    real = probability if padding_mask is None else probability[padding_mask]
    return x.double() * mask, None if penalty is None else PENALTIES[penalty](real)


def gradients_of(function, tensors, penalty_weight=1e5, **arguments):
    """Return output, penalty and gradients; the weight gives both parts of the loss a say."""
    tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    y, penalty = function(*tensors, **arguments)
    torch.manual_seed(9)
    loss = (y * torch.randn(y.shape).to(y.dtype)).sum()
    if penalty is not None:
        loss = loss + penalty_weight * penalty
    loss.backward()
    return [y.detach(), *([] if penalty is None else [penalty.detach()]), *(t.grad for t in tensors)]


def error(found, expected):
    """The relative error of a tensor as a whole."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


LIMITS = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}


@BOTH
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("penalty", ["squared", "linear", None])
@pytest.mark.parametrize("drawn", [True, False], ids=["drawn", "threshold"])
def test_output_penalty_and_gradients_are_those_of_the_twin(path, dtype, padded, penalty, drawn):
    tensors, key = example(dtype), draw_key() if drawn else None
    mask = padding(tensors[0].shape) if padded else None
    arguments = {"key": key, "penalty": penalty, "padding_mask": mask}
    with path():
        found = gradients_of(learned_mask, tensors, **arguments)
    expected = gradients_of(twin, tensors, **arguments)
    assert len(found) == len(expected)
    assert torch.equal(found[0].double(), expected[0])
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert error(one, other) < LIMITS[dtype]
    assert [t.dtype for t in found[-3:]] == [t.dtype for t in tensors]


@BOTH
def test_mixed_precision_keeps_the_dtype_of_each(path):
    tensors, key = example(torch.bfloat16, x_dtype=torch.float32), draw_key()
    tensors[2] = tensors[2].detach().float()
    with path():
        found = gradients_of(learned_mask, tensors, key=key, penalty="squared")
    expected = gradients_of(twin, tensors, key=key, penalty="squared")
    dtypes = [torch.float32, torch.float32, torch.float32, torch.bfloat16, torch.float32]
    assert [tensor.dtype for tensor in found] == dtypes
    limits = [1e-9, 1e-6, 1e-9, 1e-2, 1e-5]
    assert all(error(*pair) < limit for *pair, limit in zip(found, expected, limits, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_pure_pytorch_has_the_masks_of_the_plain_formula_bit_by_bit(dtype):
    x, gate, shift = example(dtype, shape=(3000, 64))
    probability = functional.cosine_keep_probability(gate, shift)
    torch.manual_seed(4)
    sampled = x * functional.sampled_mask(probability).to(dtype)
    torch.manual_seed(4)
    with pure_pytorch():
        assert torch.equal(learned_mask(x, gate, shift, key=draw_key())[0], sampled)
        thresholded = x * functional.thresholded_mask(probability).to(dtype)
        assert torch.equal(learned_mask(x, gate, shift)[0], thresholded)


@BOTH
@pytest.mark.parametrize("penalty", ["squared", "linear"])
def test_gradcheck_in_float64(path, penalty):
    x, gate, shift = example(torch.float64, shape=(2, 4, 3))
    key = torch.tensor([1, 2], dtype=torch.int32)
    mask = padding(x.shape)
    with path():
        # The penalty is smooth in gate and shift, the output linear in x.
        smooth = lambda gate, shift: learned_mask(x, gate, shift, penalty=penalty, padding_mask=mask)[1]  # noqa: E731
        assert torch.autograd.gradcheck(smooth, (gate, shift))
        assert torch.autograd.gradcheck(lambda x: learned_mask(x, gate, shift, key=key)[0], (x,))


def published_mask(gate, shift, key):
    """The mask through a float16 round trip, as published."""
    keep = 0.5 * torch.cos(gate + shift) + 0.5
    noise = uniform(key, keep.numel()).view_as(keep)
    rounding = torch.where(noise <= keep, 1 - keep.detach(), -keep.detach())
    return (keep.to(torch.float16) + rounding.to(torch.float16)).to(torch.float32)


def met_in_a_decoder(tokens_a_step):
    """Return a mask's input and output gradient in a decoder; its loss is a mean over a step's tokens."""
    torch.manual_seed(0)
    model = Decoder(500, DecoderConfig(width=48, heads=3, blocks=2, context=200)).train()
    met = {}
    model.blocks[0].mlp.projection.register_forward_hook(lambda module, args, out: met.update(x=out))
    model.blocks[0].mlp.projection.register_full_backward_hook(lambda module, into, dy: met.update(dy=dy[0]))
    tokens = torch.randint(500, (4, 201))
    (model(tokens[:, :-1], tokens[:, 1:]) * 800 / tokens_a_step).backward()
    return met["x"].detach(), met["dy"]


@BOTH
def test_none_of_the_gradient_is_flushed_to_zero_as_float16_does(path):
    # The published step has 160,000 tokens.
    x, dy = met_in_a_decoder(160_000)
    gate, shift, key = 0.05 * torch.randn(x.shape), torch.full((48,), 1.2), draw_key()

    def zeros(output):
        """Return the share of the gate's gradient that is zero."""
        leaf = gate.clone().requires_grad_()
        output(leaf).backward(dy)
        return (leaf.grad == 0).double().mean().item()

    assert zeros(lambda gate: x * published_mask(gate, shift, key)) > 0.4
    with path():
        assert zeros(lambda gate: learned_mask(x, gate, shift, key=key)[0]) == 0


@BOTH
@pytest.mark.parametrize("penalty", ["squared", None])
def test_backward_keeps_one_byte_or_one_bit_an_element(path, penalty):
    x, gate, shift = example(shape=(4, 200, 144))
    mask, native = padding(x.shape), path is nullcontext
    kept = {}
    with path(), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), id):
        learned_mask(x, gate, shift, key=draw_key(), penalty=penalty, padding_mask=mask)
    assert all(tensor.data_ptr() in kept for tensor in (x, gate))
    extra = sum(
        t.untyped_storage().nbytes() for p, t in kept.items() if p not in (x.data_ptr(), gate.data_ptr())
    )
    extra -= shift.nbytes + mask.nbytes
    assert extra / x.numel() == (0.125 if native else 1)


@BOTH
def test_without_gradients_the_results_are_the_same(path):
    tensors, key = example(), draw_key()
    with path():
        y, penalty = learned_mask(*tensors, key=key, penalty="squared")
        thresholded, none = learned_mask(*tensors)
        with torch.no_grad():
            again = learned_mask(*tensors, key=key, penalty="squared")
            assert torch.equal(learned_mask(*tensors)[0], thresholded)
    assert not again[0].requires_grad
    assert torch.equal(again[0], y)
    assert torch.equal(again[1], penalty)
    assert none is None


@BOTH
def test_nothing_is_hidden_that_is_not_a_number(path):
    x, gate, shift = (tensor.detach() for tensor in example(shape=(40, 16)))
    gate[1, 2], gate[3], x[5] = math.nan, math.inf, math.nan
    x[7] = math.inf
    x.requires_grad_()
    with path():
        for key in (None, draw_key()):
            y, penalty = learned_mask(x, gate, shift, key=key, penalty="squared")
            assert y[1, 2].isnan()
            assert y[[3, 5]].isnan().all()
            assert (y[7].isnan() | y[7].isinf()).all()
            assert penalty.isnan()
            rest = [i for i in range(40) if i not in (1, 3, 5, 7)]
            assert y[rest].isfinite().all()
            with torch.no_grad():
                evaluated, _ = learned_mask(x, gate, shift)
            assert evaluated[1, 2].isnan()
            assert evaluated[3].isnan().all()


@BOTH
def test_a_keep_probability_of_zero_never_keeps_and_of_one_always_does(path):
    x, gate = torch.ones(1000, 1000), torch.zeros(1000, 1000)
    with path():
        assert learned_mask(x, gate, torch.zeros(1000), key=draw_key())[0].sum() == 1e6
        assert learned_mask(x, gate, torch.full((1000,), math.pi), key=draw_key())[0].sum() == 0


@BOTH
def test_large_angles_stay_probabilities(path):
    x, gate, shift = (tensor.detach() for tensor in example(shape=(500, 64), scale=1.0))
    for scale in (1e2, 1e4, 1e8, 1e20, 1e37):
        with path():
            y, penalty = learned_mask(x, gate * scale, shift, key=draw_key(), penalty="linear")
        assert set((y / x).unique().tolist()) == {0.0, 1.0}
        assert 0.4 < penalty < 0.6


@BOTH
def test_tensors_that_are_no_plain_block_of_memory(path):
    x, gate, shift = example(shape=(6, 7, 8))
    key = draw_key()
    with path():
        expected, _ = learned_mask(x, gate, shift, key=key)
        turned = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
        found, _ = learned_mask(turned, gate, shift, key=key)
        assert torch.equal(found, expected)
        # The gradient of a sum is one number that looks like many.
        expected.sum().backward()
        found.sum().backward()
        assert torch.equal(turned.grad, x.grad)
        empty, _ = learned_mask(x[:0], gate[:0], shift, key=key)
        empty.sum().backward()
        assert empty.shape == (0, 7, 8)


@BOTH
def test_one_part_of_the_loss_alone(path):
    tensors, key = example(), draw_key()
    with path():
        y, penalty = learned_mask(*tensors, key=key, penalty="squared")
        assert torch.autograd.grad(penalty, tensors, allow_unused=True, retain_graph=True)[0] is None
        alone = torch.autograd.grad(y.sum(), tensors, retain_graph=True)
        without = torch.autograd.grad(learned_mask(*tensors, key=key)[0].sum(), tensors)
        penalised = torch.autograd.grad(penalty, tensors[1:])
    assert all(map(torch.equal, alone, without))
    expected = torch.autograd.grad(twin(*tensors, key=key, penalty="squared")[1], tensors[1:])
    assert all(error(*pair) < 1e-6 for pair in zip(penalised, expected, strict=True))


@BOTH
def test_a_batch_of_gradients_at_once(path):
    tensors, key = example(shape=(3, 4)), draw_key()
    with path():
        y, _ = learned_mask(*tensors, key=key)
        directions = torch.randn(5, 3, 4)
        together = torch.autograd.grad(y, tensors, directions, is_grads_batched=True, retain_graph=True)
        for i, direction in enumerate(directions):
            alone = torch.autograd.grad(y, tensors, direction, retain_graph=True)
            for one, other in zip(together, alone, strict=True):
                torch.testing.assert_close(one[i], other)


def test_the_mask_does_not_depend_on_the_chunks(monkeypatch):
    tensors, key = example(shape=(300, 16)), draw_key()
    with pure_pytorch():
        whole = gradients_of(learned_mask, tensors, key=key, penalty="squared")
        monkeypatch.setattr(random, "CHUNK", 16 * 7)
        parts = gradients_of(learned_mask, tensors, key=key, penalty="squared")
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[2], parts[2])
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not numba_installed(), reason="numba is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_native_masks_differ_by_no_more_than_roundings(dtype):
    x, gate, shift = example(dtype, shape=(4000, 100))
    key = draw_key()
    y, _ = learned_mask(x, gate, shift, key=key)
    with pure_pytorch():
        other, _ = learned_mask(x, gate, shift, key=key)
    assert (y != other).double().mean() < 2e-5


@BOTH
def test_a_second_derivative_is_refused(path):
    tensors = example()
    with path():
        y, _ = learned_mask(*tensors, key=draw_key())
        (gradient,) = torch.autograd.grad(y.square().sum(), tensors[1], create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()


# torch's own import, for forward-mode derivatives.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_it_takes_plain_tensors_in_eager_code_only():
    x = torch.zeros(2, 3)
    assert takes_learned_mask(x, torch.nn.Parameter(x.double()), x.half())
    assert not takes_learned_mask(x, x.as_subclass(type("Wrapped", (torch.Tensor,), {})))
    seen = []
    torch.func.vmap(lambda x: seen.append(takes_learned_mask(x)) or x)(x)
    torch.func.grad(lambda x: seen.append(takes_learned_mask(x)) or x.sum())(x)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        seen.append(takes_learned_mask(dual))
        assert takes_learned_mask(x)
    assert seen == [False, False, False]

    def compiled(x):
        return x + 1 if takes_learned_mask(x) else x - 1

    assert torch.equal(torch.compile(compiled, backend="eager", fullgraph=True)(x), x - 1)
