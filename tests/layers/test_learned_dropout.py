import math
from contextlib import nullcontext

import pytest
import torch

from transformer_dropout import functional
from transformer_dropout.errors import InputError
from transformer_dropout.kernels import random
from transformer_dropout.kernels._native import numba_installed, pure_pytorch
from transformer_dropout.kernels.mask import learned_mask
from transformer_dropout.layers import LearnedDropout, learned_dropout

WIDTH, HEADS, TOKENS = 12, 3, 8


def layer(scale=0.6, dtype=torch.float32, **arguments):
    """Build a layer whose gate is far from constant, so that its masks are mixed."""
    torch.manual_seed(3)
    built = LearnedDropout(WIDTH, HEADS, **arguments)
    torch.nn.init.normal_(built.qkv.weight, std=scale)
    return built.to(dtype)


def example(dtype=torch.float32, batch=4, seed=5):
    torch.manual_seed(seed)
    return torch.randn(batch, TOKENS, WIDTH, dtype=dtype)


def observed(built, x, padding_mask=None):
    """Run a forward and return the keep probability and the mask."""
    seen = []
    built.observer = lambda *pair: seen.append([tensor.detach() for tensor in pair])
    built(x, padding_mask)
    built.observer = None
    assert len(seen) == 1
    return seen[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("mode", ["train", "threshold", "sample"])
def test_masks_are_exactly_zero_or_one(mode, dtype):
    built = layer(dtype=dtype, shift=1.2, eval_mask="sample" if mode == "sample" else "threshold")
    _, mask = observed(built.train(mode == "train"), example(dtype, batch=64))
    assert mask.dtype == dtype
    assert set(mask.unique().tolist()) == {0.0, 1.0}


def test_the_output_is_the_input_times_the_mask_without_rescaling():
    built, x = layer(shift=1.2), example()
    torch.manual_seed(0)
    _, mask = observed(built, x)
    torch.manual_seed(0)
    assert torch.equal(built(x), x * mask)


def test_the_mean_mask_is_the_keep_probability():
    built, x = layer(shift=1.2, eval_mask="mean").eval(), example()
    keep_probability, mask = observed(built, x)
    assert torch.equal(mask, keep_probability)
    assert torch.equal(built(x), x * keep_probability)


def test_the_threshold_keeps_from_one_half_on():
    mask = functional.thresholded_mask(torch.tensor([0.0, 0.4999, 0.5, 0.5001, 1.0]))
    assert mask.tolist() == [0.0, 0.0, 1.0, 1.0, 1.0]


def test_a_keep_probability_of_zero_never_keeps_and_of_one_always_does():
    torch.manual_seed(0)
    # A million draws: torch.rand returns exactly 0 about once in 2^24, so also force it below.
    assert functional.sampled_mask(torch.zeros(1000, 1000)).sum() == 0
    assert functional.sampled_mask(torch.ones(1000, 1000)).sum() == 1000 * 1000


def test_noise_of_exactly_zero_does_not_keep_at_probability_zero(monkeypatch):
    monkeypatch.setattr(random, "uniform", lambda key, count, start=0: torch.zeros(count))
    assert functional.sampled_mask(torch.tensor([0.0, 1e-6])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_small_keep_probability_is_met_in_half_precision_too(dtype):
    # Noise in bfloat16 has steps of 2^-8, four times this probability.
    torch.manual_seed(0)
    mask = functional.sampled_mask(torch.full((4_000_000,), 1e-3, dtype=dtype))
    assert mask.float().mean().item() == pytest.approx(1e-3, rel=0.1)


@pytest.mark.parametrize(("shift", "kept"), [(0.0, 1.0), (math.pi, 0.0)])
def test_shift_zero_starts_by_keeping_all_and_shift_pi_by_dropping_all(shift, kept):
    torch.manual_seed(0)
    built, x = LearnedDropout(WIDTH, HEADS, shift=shift), example()
    # The gate starts near zero and not at zero: about one element in a thousand differs.
    assert (built(x) == x * kept).float().mean() > 0.98
    assert torch.equal(built.eval()(x), x * kept)


def test_the_fraction_kept_approaches_the_mean_keep_probability():
    built = layer(shift=1.0)
    keep_probability, mask = observed(built, example(batch=400))
    # 38,400 independent draws: the standard error lies below 0.0026.
    assert abs(mask.mean() - keep_probability.mean()) < 0.01
    assert 0.3 < keep_probability.mean() < 0.9


def test_two_training_masks_differ_and_two_threshold_masks_do_not():
    built, x = layer(shift=1.2), example()
    assert not torch.equal(built(x), built(x))
    assert torch.equal(built.eval()(x), built(x))


def test_a_later_token_never_changes_an_earlier_mask():
    built, x = layer(shift=1.2, eval_mask="mean").eval(), example()
    changed = x.clone()
    changed[:, 5:] = example(seed=6)[:, 5:]
    before, after = observed(built, x)[0], observed(built, changed)[0]
    torch.testing.assert_close(after[:, :5], before[:, :5], rtol=0, atol=1e-6)
    assert not torch.allclose(after[:, 5:], before[:, 5:], atol=1e-2)


def test_a_bidirectional_mask_sees_later_tokens():
    built, x = layer(shift=1.2, causal=False, eval_mask="mean").eval(), example()
    changed = x.clone()
    changed[:, -1] += 3
    assert not torch.allclose(observed(built, x)[0][:, 0], observed(built, changed)[0][:, 0], atol=1e-3)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padding", [slice(5, None), slice(0, 3)], ids=["behind", "in front"])
def test_padding_has_no_influence_on_real_tokens(causal, padding):
    built, x = layer(shift=1.2, causal=causal, eval_mask="mean").eval(), example()
    padding_mask = torch.ones(x.shape[:2], dtype=torch.bool)
    padding_mask[:, padding] = False
    changed = x.clone()
    changed[:, padding] = 1e3
    before, after = built(x, padding_mask), built(changed, padding_mask)
    assert torch.equal(after[padding_mask], before[padding_mask])
    assert after.isfinite().all()
    alone = built(x[padding_mask].view(len(x), -1, WIDTH))
    torch.testing.assert_close(after[padding_mask], alone.flatten(0, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("penalty", ["squared", "linear", "entropy"])
def test_padding_counts_in_no_penalty_and_no_statistic(penalty):
    built, x = layer(shift=1.2, penalty=penalty), example()
    padding_mask = torch.ones(x.shape[:2], dtype=torch.bool)
    padding_mask[:, 5:] = False
    keep_probability, mask = observed(built, x, padding_mask)
    assert keep_probability.shape == mask.shape == (4 * 5, WIDTH)
    padded = built.take_penalty()
    built(x[:, :5])
    torch.testing.assert_close(padded, built.take_penalty())


def test_a_row_of_nothing_but_padding_stays_finite():
    built, x = layer(shift=1.2), example().requires_grad_()
    padding_mask = torch.ones(x.shape[:2], dtype=torch.bool)
    padding_mask[0] = False
    output = built(x, padding_mask)
    (output.sum() + built.take_penalty()).backward()
    assert output.isfinite().all()
    assert x.grad.isfinite().all()


def test_the_penalties_are_their_formulas():
    x = example()
    for name, formula in {
        "squared": lambda m: (m**2 / 2).mean(),
        "linear": lambda m: m.mean(),
        "entropy": lambda m: torch.distributions.Bernoulli(m).entropy().mean(),
    }.items():
        built = layer(shift=1.2, penalty=name)
        keep_probability, _ = observed(built, x)
        torch.testing.assert_close(built.take_penalty().detach(), formula(keep_probability))


def test_the_entropy_and_its_gradient_stay_finite_at_zero_and_one():
    probability = torch.tensor([0.0, 1.0], requires_grad=True)
    penalty = functional.entropy_penalty(probability)
    penalty.backward()
    assert 0 <= penalty < 1e-5
    assert probability.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_entropy_is_as_precise_as_its_input_and_at_least_float32(dtype):
    probability = torch.tensor([0.125, 0.5, 0.75], dtype=dtype)
    expected = torch.distributions.Bernoulli(probability.double()).entropy().mean()
    penalty = functional.entropy_penalty(probability)
    assert penalty.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert abs(penalty - expected) < (1e-15 if dtype == torch.float64 else 1e-6)


def test_detach_stops_the_gradient_of_the_mask_at_its_input():
    x = example().requires_grad_()
    built = layer(shift=1.2, detach=True)
    _, mask = observed(built, x)
    built(x).sum().backward()
    assert set(x.grad.unique().tolist()) <= {0.0, 1.0}  # only the mask, nothing through the gate
    assert built.qkv.weight.grad.count_nonzero()
    assert mask.shape == x.shape


def test_the_penalty_reaches_the_input_unless_detached():
    for detach in (False, True):
        x = example().requires_grad_()
        built = layer(shift=1.2, detach=detach)
        built(x)
        built.take_penalty().backward()
        assert (x.grad is None) == detach


def test_another_mask_function_is_a_subclass_that_overrides_the_keep_probability():
    class KeepHalfTheChannels(LearnedDropout):
        def keep_probability(self, gate):
            return torch.ones_like(gate) * (torch.arange(self.width) < self.width // 2)

    built, x = KeepHalfTheChannels(WIDTH, HEADS, penalty="linear"), example()
    output = built(x)
    assert torch.equal(output[..., :6], x[..., :6])
    assert output[..., 6:].count_nonzero() == 0
    assert built.take_penalty() == 0.5


def test_without_a_penalty_there_is_none_to_take():
    built = layer(penalty=None)
    built(example())
    assert not built.has_penalty
    with pytest.raises(InputError, match="penalty was read"):
        built.take_penalty()


def test_a_penalty_is_read_after_a_forward_and_once():
    built = layer()
    with pytest.raises(InputError, match="before a forward in training mode"):
        built.take_penalty()
    built(example())
    built.take_penalty()
    with pytest.raises(InputError, match="once after each forward"):
        built.take_penalty()


def test_an_evaluation_leaves_no_penalty():
    built = layer().eval()
    built(example())
    with pytest.raises(InputError, match=r"model\.train\(\)"):
        built.take_penalty()


def test_a_second_forward_overwrites_the_penalty_of_the_first():
    built = layer(shift=1.2)
    built(example())
    built(example(seed=6))
    taken = built.take_penalty()
    built(example(seed=6))
    assert torch.equal(taken, built.take_penalty())


def test_a_penalty_without_its_gradient_is_an_error_where_gradients_are_wanted():
    built = layer()
    with torch.no_grad():
        built(example())
        assert not built.take_penalty().requires_grad
        built(example())
    with pytest.raises(InputError, match="use_reentrant=False"):
        built.take_penalty()


def test_a_forward_without_gradients_in_between_leaves_the_penalty_of_the_one_with():
    built = layer()
    built(example())
    waiting = built.pending_penalty
    with torch.no_grad():
        built(example(seed=6))
    assert built.take_penalty() is waiting
    built(example(seed=6))
    assert built.take_penalty() is not waiting


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 12, "heads": 5}, "12 cannot be split among 5 heads"),
        ({"width": 12, "heads": 0}, "heads that divide 12"),
        ({"shift": -0.1}, "shift is -0.1"),
        ({"shift": 3.2}, "between 0 and pi"),
        ({"shift": math.nan}, "shift is nan"),
        ({"eval_mask": "treshold"}, "Did you mean 'threshold'"),
        ({"penalty": "sqared"}, "Did you mean 'squared'"),
        ({"penalty": "xyz"}, "Known: entropy, linear, squared"),
    ],
)
def test_a_wrong_argument_is_named_with_what_to_type_instead(arguments, message):
    with pytest.raises(InputError, match=message):
        LearnedDropout(**({"width": WIDTH, "heads": HEADS} | arguments))


# --- one pass, or step by step


class Plain(LearnedDropout):
    """The same formulas, never in one pass."""

    def in_one_pass(self, x, gate):
        return False


def results(kind, x, padding_mask=None, *, training=True, autocast=False, dtype=torch.float32, **arguments):
    """Return output and gradients of one step, the same masks for both kinds."""
    built = layer(dtype=dtype, shift=1.2, **arguments).train(training)
    built.__class__ = kind
    x = x.clone().requires_grad_()
    torch.manual_seed(8)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = built(x, padding_mask)
    loss = (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum()
    if training and built.has_penalty:
        loss = loss + 100 * built.take_penalty()
    loss.backward()
    return {"y": y.detach(), "x": x.grad} | {name: p.grad for name, p in built.named_parameters()}


@pytest.mark.parametrize("path", [pure_pytorch, nullcontext], ids=["pure", "default"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"penalty": "linear", "bias": True, "causal": False},
        {"penalty": None},
        {"detach": True},
        {"training": False},
        {"training": False, "eval_mask": "sample"},
        {"autocast": True},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float16},
        {"dtype": torch.float64},
    ],
    ids=str,
)
def test_one_pass_gives_what_the_steps_give(path, padded, arguments):
    x = example(arguments.get("dtype", torch.float32))
    padding_mask = torch.ones(x.shape[:2], dtype=torch.bool)
    padding_mask[:, 5:] = False
    with path():
        found, expected = (
            results(kind, x, padding_mask if padded else None, **arguments)
            for kind in (LearnedDropout, Plain)
        )
    coarse = arguments.get("autocast") or arguments.get("dtype") in (torch.bfloat16, torch.float16)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        error = (found[name].double() - value.double()).norm() / value.double().norm()
        assert error < (1e-2 if coarse else 1e-5), name
    assert torch.equal(found["y"], expected["y"])


class Halved(LearnedDropout):
    def keep_probability(self, gate):
        return super().keep_probability(gate) / 2


class Sure(LearnedDropout):
    def mask(self, keep_probability):
        return functional.thresholded_mask(keep_probability)


def test_one_pass_is_taken_where_it_computes_the_same_and_nothing_is_asked(monkeypatch):
    taken = []
    monkeypatch.setattr(
        learned_dropout, "learned_mask", lambda *a, **k: taken.append(1) or learned_mask(*a, **k)
    )

    def in_one_pass(built, x=None):
        taken.clear()
        built(example() if x is None else x)
        return bool(taken)

    assert in_one_pass(layer())
    assert in_one_pass(layer(penalty=None))
    assert in_one_pass(layer(penalty="entropy").eval())
    assert in_one_pass(layer(eval_mask="mean"))
    assert in_one_pass(layer(dtype=torch.float16), example(torch.float16))
    with torch.no_grad():
        assert in_one_pass(layer().eval())
    assert not in_one_pass(layer(penalty="entropy"))
    assert not in_one_pass(layer(eval_mask="mean").eval())
    assert not any(in_one_pass(kind(WIDTH, HEADS)) for kind in (Halved, Sure))
    own = layer()
    own.keep_probability = lambda gate: torch.ones_like(gate)
    assert not in_one_pass(own)
    watched = layer()
    watched.observer = lambda keep_probability, mask: None
    assert not in_one_pass(watched)
    assert not in_one_pass(torch.compile(layer(), backend="eager", fullgraph=True))


# torch's own, about attention under vmap.
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_function_transforms_take_the_steps():
    built, x = layer(shift=1.2), example()
    parameters = {name: p.detach() for name, p in built.named_parameters()}

    def loss(parameters, x):
        torch.manual_seed(3)
        return torch.func.functional_call(built, parameters, (x,)).square().sum()

    found = torch.func.grad(loss)(parameters, x)
    torch.manual_seed(3)
    built(x).square().sum().backward()
    for name, parameter in built.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-5)
    drawn = torch.func.vmap(lambda row: built(row[None])[0], randomness="different")(x[:1].expand(4, -1, -1))
    assert not torch.equal(drawn[0], drawn[1])
    built.eval()
    torch.testing.assert_close(torch.func.vmap(lambda row: built(row[None])[0])(x), built(x))


@pytest.mark.parametrize("path", [pure_pytorch, nullcontext], ids=["pure", "default"])
def test_a_training_forward_keeps_the_mask_and_what_attention_keeps_anyway(path):
    built, x = LearnedDropout(48, 4, shift=1.2), torch.randn(4, 64, 48, requires_grad=True)

    def kept_bytes(function):
        """Return the bytes that a forward keeps for its backward, the parameters left out."""
        kept = {p.untyped_storage().data_ptr(): 0 for p in built.parameters()}

        def keep(tensor):
            storage = tensor.untyped_storage()
            kept.setdefault(storage.data_ptr(), storage.nbytes())
            return tensor

        with path(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = function(x)
        assert result.requires_grad
        return sum(kept.values())

    share = (kept_bytes(built) - kept_bytes(lambda x: built.gate(x))) / x.numel()
    assert share == (0.125 if path is nullcontext and numba_installed() else 1)


def test_tokens_that_come_later_see_those_before(past):
    built, x = layer().eval(), example()
    parts = [built(part, past=past) for part in x.split([3, 1, 4], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), built(x))
    assert not torch.equal(torch.cat([built(part) for part in x.split([3, 1, 4], dim=1)], dim=1), built(x))


class OwnGate(LearnedDropout):
    """A gate that a decoder cannot know."""


def test_a_decoder_is_given_the_mask_of_the_class_itself_alone():
    built = layer()
    gate = built.token_gate()
    assert (gate.layer, gate.qkv, gate.shift, gate.heads) == (built, built.qkv, built.shift, HEADS)
    assert OwnGate(WIDTH, HEADS).token_gate() is None
    assert layer(eval_mask="mean").token_gate() is layer(causal=False).token_gate() is None


def test_one_head_may_look_at_all_channels():
    assert LearnedDropout(WIDTH, 1)(example()).shape == (4, TOKENS, WIDTH)


def test_a_refused_choice_is_named():
    with pytest.raises(InputError, match="eval_mask"):
        LearnedDropout(WIDTH, HEADS, eval_mask="meen")
