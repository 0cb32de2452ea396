import pytest
import torch

import transformer_dropout as td
from transformer_dropout.layers import AnchoredDropout, CrossFittedDropout
from transformer_dropout.terms.weights import weight_decay_groups

WIDTH, HEADS = 8, 2


def layer(spread=0.6, **words):
    torch.manual_seed(0)
    built = CrossFittedDropout(WIDTH, HEADS, **words)
    if spread:
        torch.nn.init.normal_(built.qkv.weight, std=spread)
    return built


def gate_of(built, which):
    """Return one of the two gates as a layer of its own."""
    alone = AnchoredDropout(WIDTH, HEADS, anchor_p=built.anchor_p)
    with torch.no_grad():
        parts = built.qkv.weight.view(3, 2, WIDTH, WIDTH)[:, which]
        alone.qkv.weight.copy_(parts.reshape(3 * WIDTH, WIDTH))
        alone.shift.copy_(built.shift.view(2, WIDTH)[which])
    return alone


def probabilities(built, x):
    found = []
    built.observer = lambda keep_probability, mask: found.append(keep_probability.detach())
    built(x)
    built.observer = None
    return found[0]


def test_sequences_alternate_between_two_gates_that_change_when_turned():
    built, x = layer(), torch.randn(6, 5, WIDTH)
    first, second = (probabilities(gate_of(built, which), x) for which in range(2))
    assert not torch.allclose(first, second, atol=0.01)
    found = probabilities(built, x)
    torch.testing.assert_close(found[::2], first[::2])
    torch.testing.assert_close(found[1::2], second[1::2])
    built.turned = True
    torch.testing.assert_close(probabilities(built, x)[::2], second[::2])
    torch.testing.assert_close(probabilities(built, x)[1::2], first[1::2])


def test_evaluation_has_the_mean_of_both():
    built, x = layer(anchor_p=0.25).eval(), torch.randn(3, 5, WIDTH)
    first, second = (probabilities(gate_of(built, which).eval(), x) for which in range(2))
    torch.testing.assert_close(built(x), x * (first + second) / 2 / 0.75)


def test_it_starts_as_dropout_with_two_gates_apart():
    built, x = layer(spread=0, anchor_p=0.3), torch.randn(200, 20, WIDTH)
    y = built(x)
    kept = y != 0
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.01)
    torch.testing.assert_close(y[kept], (x / 0.7)[kept])
    assert not torch.allclose(*built.qkv.weight.view(3, 2, WIDTH, WIDTH)[0])


def test_only_the_gate_at_work_has_a_gradient():
    built, x = layer(), torch.randn(4, 5, WIDTH)
    built(x)[::2].sum().backward()
    of_both = built.qkv.weight.grad.view(3, 2, WIDTH, WIDTH).abs().amax(dim=(0, 2, 3))
    assert of_both[0] > 0 and of_both[1] == 0


def test_tokens_one_by_one_with_a_cache_are_masked_as_all_at_once(past):
    built, x = layer().eval(), torch.randn(2, 5, WIDTH)
    parts = [built(x[:, token : token + 1], past=past) for token in range(5)]
    torch.testing.assert_close(torch.cat(parts, dim=1), built(x))


def test_its_gates_have_a_group_of_their_own_in_the_optimizer():
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), layer(lr_scale=3.0))
    groups = weight_decay_groups(model, 0.5)
    own = next(group for group in groups if any(p is model[1].qkv.weight for p in group["params"]))
    assert own["weight_decay"] == 0.0 and own["lr_scale"] == 3.0


def test_it_goes_through_a_recipe():
    rule = td.Rule("mlp_output", td.CrossFittedDropout, heads=2, anchor_p=0.2, weight=0.5)
    assert td.Recipe.from_data(td.Recipe([rule]).to_data()) == td.Recipe([rule])
