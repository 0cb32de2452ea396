import math

import pytest
import torch

from transformer_dropout.errors import InputError
from transformer_dropout.layers import AnchoredDropout
from transformer_dropout.layers.anchored_dropout import bernoulli_divergence, corrected_mask
from transformer_dropout.terms.weights import weight_decay_groups

WIDTH, HEADS = 8, 2


def layer(**words):
    torch.manual_seed(0)
    return AnchoredDropout(WIDTH, HEADS, **words)


def trained(**words):
    built = layer(**words)
    torch.nn.init.normal_(built.qkv.weight, std=0.6)
    return built


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_it_starts_as_dropout(p):
    built, x = layer(anchor_p=p), torch.randn(200, 20, WIDTH)
    y = built(x)
    kept = y != 0
    assert kept.float().mean().item() == pytest.approx(1 - p, abs=0.01)
    torch.testing.assert_close(y[kept], (x / (1 - p))[kept])
    assert built.take_penalty().item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(built.eval()(x), x)


def test_evaluation_multiplies_by_the_mean_mask_scaled_as_in_training():
    built, x = trained(anchor_p=0.25), torch.randn(1, 6, WIDTH)
    mean = built(x.expand(20_000, 6, WIDTH)).mean(dim=0, keepdim=True)
    torch.testing.assert_close(built.eval()(x), mean, atol=0.05, rtol=0)


def test_the_penalty_is_the_divergence_from_the_anchor():
    keep = torch.tensor([0.02, 0.5, 0.75, 0.999])
    bernoulli = torch.distributions.Bernoulli
    expected = torch.distributions.kl_divergence(bernoulli(keep), bernoulli(torch.tensor(0.75))).mean()
    torch.testing.assert_close(bernoulli_divergence(keep, 0.25), expected)
    assert bernoulli_divergence(torch.tensor([0.0, 1.0]), 0.25).item() == pytest.approx(
        (math.log(1 / 0.25) + math.log(1 / 0.75)) / 2, abs=1e-4
    )


def reinmax(logit, drawn, gradient):
    """ReinMax for one Bernoulli, from its published formula: 2 J((pi + D) / 2) g - J(pi) g / 2.

    J is the softmax's Jacobian, for two classes p (1 - p) with regard to the difference of the logits.
    """
    p = torch.sigmoid(logit)
    middle = (p + drawn) / 2
    return gradient * (2 * middle * (1 - middle) - p * (1 - p) / 2)


def test_the_gradient_is_that_of_reinmax():
    logit = torch.linspace(-2, 2, 400, requires_grad=True)
    torch.manual_seed(1)
    mask = corrected_mask(torch.sigmoid(logit), clip=1e9)
    gradient = torch.randn(400)
    (mask * gradient).sum().backward()
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(logit.grad, reinmax(logit.detach(), mask.detach(), gradient))


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_for_a_quadratic_loss_its_mean_is_the_true_gradient(keep):
    """f(m) = 3 m^2 - m: E f(m) = 2 M, whose derivative is 2; straight through gives 6 M - 1 instead."""
    probability = torch.full((400_000,), keep, requires_grad=True)
    torch.manual_seed(0)
    mask = corrected_mask(probability, clip=1e9)
    (3 * mask**2 - mask).mean().backward()
    assert probability.grad.sum().item() == pytest.approx(2, abs=0.05)
    assert abs(6 * keep - 1 - 2) > 0.3 or keep == 0.5


def test_the_factor_of_the_gradient_is_clipped():
    probability = torch.full((10_000,), 0.999, requires_grad=True)
    mask = corrected_mask(probability, clip=10.0)
    mask.sum().backward()
    assert (mask == 0).any()
    torch.testing.assert_close(probability.grad[mask == 0], torch.full(((mask == 0).sum(),), 10.0))
    torch.testing.assert_close(probability.grad[mask == 1], torch.full(((mask == 1).sum(),), 0.5 / 0.999))


def test_at_the_anchor_it_is_plain_dropout_whatever_was_learned():
    built, x = trained(anchor_p=0.25), torch.ones(400, 20, WIDTH)
    built.at_anchor = True
    y = built(x)
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert built.pending_penalty is None
    assert not torch.equal(built.eval()(x), x)


def test_its_gate_is_not_decayed_and_learns_at_a_rate_of_its_own():
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), layer(lr_scale=3.0))
    groups = weight_decay_groups(model, 0.5)
    of = {id(p): group for group in groups for p in group["params"]}
    assert len(of) == len(list(model.parameters()))
    gate = of[id(model[1].qkv.weight)]
    assert (gate["weight_decay"], gate["decayed"], gate["lr_scale"]) == (0.0, False, 3.0)
    assert of[id(model[1].shift)] is gate
    assert of[id(model[0].weight)]["weight_decay"] == 0.5
    assert "lr_scale" not in of[id(model[0].weight)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"anchor_p": 0.0}, "strictly between 0 and 1"),
        ({"anchor_p": 1.0}, "strictly between 0 and 1"),
        ({"clip": 0.0}, "clip is 0"),
        ({"lr_scale": -1.0}, "lr_scale is -1"),
    ],
)
def test_numbers_out_of_range_are_refused(words, message):
    with pytest.raises(InputError, match=message):
        layer(**words)


def test_what_is_not_said_is_as_the_docstring_says():
    built = layer()
    assert (built.anchor_p, built.clip, built.causal, built.detach) == (0.1, 10.0, True, False)
    assert (built.eval_mask, built.penalty, built.has_penalty) == ("mean", None, True)
    assert built.optimizer_options == {"weight_decay": 0.0, "lr_scale": 1.0}


@pytest.mark.parametrize("causal", [True, False])
def test_a_mask_looks_at_later_tokens_only_where_it_may(causal):
    built, x = trained(causal=causal).eval(), torch.randn(2, 6, WIDTH)
    other = torch.cat([x[:, :-1], torch.randn(2, 1, WIDTH)], dim=1)
    assert torch.allclose(built(x)[:, :-1], built(other)[:, :-1]) is causal


@pytest.mark.parametrize("detach", [True, False])
def test_a_detached_mask_has_no_gradient_to_its_input(detach):
    built, x = trained(detach=detach).eval(), torch.randn(2, 6, WIDTH, requires_grad=True)
    y = built(x)
    y.sum().backward()
    assert torch.allclose(x.grad, (y / x).detach(), rtol=1e-3) is detach


def test_padding_is_neither_looked_at_nor_counted():
    built, x, real = trained(causal=False), torch.randn(2, 6, WIDTH), torch.ones(2, 6, dtype=torch.bool)
    real[1, 4:] = False
    outputs, penalties = [], []
    for given in (x, torch.where(real[..., None], x, 9.0)):
        torch.manual_seed(1)
        outputs.append(built(given, real)[real])
        penalties.append(built.take_penalty())
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*penalties)


def test_tokens_that_come_later_see_those_before(past):
    built, x = trained().eval(), torch.randn(2, 6, WIDTH)
    parts = [built(part, None, past) for part in x.split([3, 1, 2], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), built(x))


def test_in_half_precision_the_divergence_is_computed_in_full():
    keep = torch.tensor([0.5, 0.99, 1.0], dtype=torch.bfloat16)
    found = bernoulli_divergence(keep, 0.25)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, bernoulli_divergence(keep.float(), 0.25))
