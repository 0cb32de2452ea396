"""Every Hugging Face family: each kind of site is reached, really drops, saves, copies and comes out."""

import copy
import functools

import pytest
import torch

import transformer_dropout as td
from transformer_dropout.audit._configured import config_fields
from transformer_dropout.audit.tiny_models import FAMILIES, tiny_inputs, tiny_model
from transformer_dropout.sites import KINDS, missing_kinds

EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
SEEDED, MEASURED = 5, 0.5


@functools.cache
def original(family):
    """The family's model with no dropout of its own, never changed."""
    return tiny_model(family, **dict.fromkeys(config_fields(tiny_model(family)), 0.0))


def fresh(family):
    return copy.deepcopy(original(family))


def kinds_of(model):
    return [kind for kind in KINDS if kind not in missing_kinds(model)]


def output(model, seed=SEEDED):
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(**tiny_inputs(model)).logits


def learned():
    return td.Recipe(
        [td.Rule("mlp_output", td.LearnedDropout, heads=4, shift=1.4, eval_mask="mean", weight=0.1)]
    )


def regularized(family, recipe=None):
    model = fresh(family)
    return model, td.regularize_(model, learned() if recipe is None else recipe)


@EVERY_FAMILY
def test_every_kind_is_reached(family):
    assert missing_kinds(original(family)) == {}


@EVERY_FAMILY
def test_every_place_but_the_attention_weights_has_its_true_width(family):
    model = fresh(family)
    kinds = [kind for kind in kinds_of(model) if kind != "attention_weights"]
    handle = td.set_rates(model, dict.fromkeys(kinds, 0.0))
    widths = {}
    for placed in handle.placed:
        placed.layer.register_forward_hook(
            lambda layer, given, result, site=placed.site: widths.update({site: result.shape[-1]})
        )
    output(model)
    assert widths == {placed.site: placed.site.width for placed in handle.placed}


@EVERY_FAMILY
def test_one_recipe_drops_in_training_and_only_there_and_comes_out_again(family):
    model = fresh(family)
    keys, expected = list(model.state_dict()), output(model)
    attention, modules = model.config._attn_implementation, list(dict(model.named_modules()))
    for kind in kinds_of(model):
        handle = td.set_rates(model, {kind: 0.9})
        assert torch.equal(output(model.eval()), expected), kind
        model.train()
        assert not torch.equal(output(model), expected), kind
        handle.update({kind: 0.0})
        assert torch.equal(output(model), output(model)), kind
        torch.testing.assert_close(output(model), expected)
        handle.remove()
        assert torch.equal(output(model), expected), kind
    assert list(model.state_dict()) == keys
    assert list(dict(model.named_modules())) == modules
    assert model.config._attn_implementation == attention
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@EVERY_FAMILY
def test_half_of_the_elements_at_each_place_are_really_zero(family):
    model = fresh(family).train()
    handle = td.set_rates(model, dict.fromkeys(kinds_of(model), MEASURED))
    seen = {placed.site.name: [0, 0] for placed in handle.placed if placed.site.access != "rate"}

    def count(layer, given, result, name):
        # Zeros that came in, as where a token may not look, say nothing.
        alive = given[0] != 0
        seen[name][0] += int((result == 0)[alive].sum())
        seen[name][1] += int(alive.sum())

    for placed in handle.placed:
        if placed.site.access != "rate":
            placed.layer.register_forward_hook(functools.partial(count, name=placed.site.name))
    for seed in range(2):
        torch.manual_seed(seed)
        model(**tiny_inputs(model))
    for name, (zeros, total) in seen.items():
        assert total > 0, name
        assert abs(zeros / total - MEASURED) < 5 * (MEASURED**2 / total) ** 0.5, name
    if family == "mpt":
        # Its own code drops the attention weights.
        events = td.audit(model, tiny_inputs(model)).events
        rates = [event.measured for event in events if event.kind == "attention_weights"]
        assert len(rates) == 2
        assert all(abs(rate - MEASURED) < 0.1 for rate in rates)


@EVERY_FAMILY
def test_a_rule_for_one_kind_leaves_the_models_own_rates_elsewhere(family):
    """Every rate of the model's own is 0.37; one kind is set to 0.11, and nothing else changes."""
    fields = {name: 0.37 for name in config_fields(tiny_model(family)) if "layerdrop" not in name}
    model = tiny_model(family, **fields)
    before = rates_that_ran(model)
    for kind in {kind for _, kind, _ in before} - {"unknown"}:
        handle = td.set_rates(model, {kind: 0.11})
        after = rates_that_ran(model)
        assert {rate for _, k, rate in after if k == kind} == {0.11}, kind
        assert [rate for _, k, rate in after if k != kind] == [rate for _, k, rate in before if k != kind]
        handle.remove()
        assert rates_that_ran(model) == before


@EVERY_FAMILY
def test_a_rate_of_zero_at_every_kind_turns_all_of_the_models_own_dropout_off(family):
    model = tiny_model(family, **dict.fromkeys(config_fields(tiny_model(family)), 0.37)).train()
    # Enough of them that all layers are dropped in one of the forwards.
    assert any(not torch.equal(output(model), output(model, seed)) for seed in range(3))
    handle = td.set_rates(model, dict.fromkeys(kinds_of(model), 0.0))
    expected = output(model.eval())
    model.train()
    for seed in range(3):
        torch.testing.assert_close(output(model, seed), expected)
    handle.remove()
    assert any(not torch.equal(output(model), output(model, seed)) for seed in range(3))


def rates_that_ran(model):
    events = td.audit(model, tiny_inputs(model)).events
    return [(event.path, event.kind, round(event.resolved, 6)) for event in events if event.resolved]


@EVERY_FAMILY
def test_a_learned_mask_gets_gradients_and_keeps_the_models_keys(family):
    model, handle = regularized(family)
    own = {name: value.clone() for name, value in original(family).state_dict().items()}
    inputs = tiny_inputs(model)
    torch.manual_seed(SEEDED)
    (model.train()(**inputs, use_cache=False).logits.square().mean() + handle.penalty()).backward()
    for placed in handle.placed:
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in placed.layer.parameters())
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in own.items())
    added = set(state) - set(own)
    assert added
    assert all(".mlp_output_dropout." in f".{name}" or "dropout" in name for name in added)


@EVERY_FAMILY
def test_a_learned_mask_acts_in_evaluation(family):
    model, _ = regularized(family)
    assert not torch.equal(output(model), output(original(family)))
    assert torch.equal(output(model), output(model))


@EVERY_FAMILY
def test_the_handle_re_attaches_to_a_loaded_state(family):
    model, other = regularized(family)[0], regularized(family)[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(output(other), output(model))
    assert torch.equal(output(other.train()), output(model.train()))


@EVERY_FAMILY
def test_a_deep_copy_is_independent(family):
    model, handle = regularized(
        family, td.Recipe([*learned().rules, td.Rule("attention_output", td.Dropout, p=0.2)])
    )
    twin = copy.deepcopy(model.train())
    expected = output(model)
    assert torch.equal(output(twin), expected)
    handle.update({"attention_output": 0.9})
    with torch.no_grad():
        for placed in handle.placed:
            for parameter in placed.layer.parameters():
                parameter.normal_()
    assert not torch.equal(output(model), expected)
    assert torch.equal(output(twin), expected)
    handle.remove()
    assert torch.equal(output(twin), expected)
