import copy

import pytest
import torch

from transformer_dropout.errors import InputError
from transformer_dropout.layers import (
    DropHead,
    DropKey,
    Dropout,
    LearnedDropout,
    PrecomputedLearnedDropout,
    TokenDropout,
)
from transformer_dropout.recipe import Recipe, Rule
from transformer_dropout.schedules import Linear
from transformer_dropout.surgery._refusals import handle_of
from transformer_dropout.surgery.regularize import regularize_
from transformer_dropout.surgery.set_rates import set_rates
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

VOCABULARY, CONTEXT = 19, 6

EVERYWHERE = Recipe(
    [
        Rule("embedding", Dropout, p=0.2),
        Rule("attention_weights", Dropout, p=0.3),
        Rule("attention_output", PrecomputedLearnedDropout, heads=2, shift=1.2, weight=0.2),
        Rule("mlp_hidden", Dropout, p=0.4),
        Rule("mlp_output", LearnedDropout, heads=2, shift=1.2, weight=0.1),
    ]
)
RATES = Recipe([rule for rule in EVERYWHERE.rules if rule.p is not None])


def decoder(blocks=3):
    torch.manual_seed(0)
    return Decoder(VOCABULARY, DecoderConfig(width=8, heads=2, blocks=blocks, context=CONTEXT))


def tokens(seed=1):
    return torch.randint(0, VOCABULARY, (4, CONTEXT), generator=torch.Generator().manual_seed(seed))


def seeded(model, seed=5):
    torch.manual_seed(seed)
    return model(tokens())


def test_the_models_own_state_stays_under_its_own_keys():
    model = decoder()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    regularize_(model, EVERYWHERE)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    added = set(after) - set(before)
    assert added
    assert all("_dropout." in name or ".mask_embedding." in name for name in added)


def test_removal_leaves_the_model_bit_for_bit_as_it_was():
    model = decoder()
    keys, output = list(model.state_dict()), model(tokens())
    modules, attributes = list(dict(model.named_modules())), set(vars(model.blocks[0].attention))
    handle = regularize_(model, EVERYWHERE)
    assert not torch.equal(model(tokens()), output)
    handle.remove()
    assert torch.equal(model(tokens()), output)
    assert list(model.state_dict()) == keys
    assert list(dict(model.named_modules())) == modules
    assert set(vars(model.blocks[0].attention)) == attributes
    assert not any(module._forward_hooks for module in model.modules())


def test_a_removed_model_can_be_regularized_again():
    model = decoder()
    regularize_(model, EVERYWHERE).remove()
    assert len(regularize_(model, RATES).placed) == 1 + 3 + 3


def test_removing_twice_is_an_error():
    for recipe in (RATES, Recipe()):
        handle = regularize_(decoder(), recipe)
        handle.remove()
        with pytest.raises(InputError, match="removed already"):
            handle.remove()


@pytest.mark.parametrize("use", [lambda h: h.set_progress(0.5), lambda h: h.update({"embedding": 0.3})])
def test_a_removed_regularization_steers_nothing(use):
    handle = regularize_(decoder(), RATES)
    handle.remove()
    with pytest.raises(InputError, match=r"removed already; call td\.regularize_"):
        use(handle)


@pytest.mark.parametrize(
    ("model", "recipe"),
    [("gpt2", RATES), (None, [RATES.rules[0]]), (None, "bert"), (None, {"embedding": 0.1})],
)
def test_what_is_no_model_or_no_recipe_is_named(model, recipe):
    with pytest.raises(InputError, match=r"Write td\.regularize_\(model, td\.Recipe"):
        regularize_(decoder() if model is None else model, recipe)


def test_rates_are_numbers_or_schedules():
    handle = set_rates(decoder(), {"embedding": 0.2, "mlp_output": Linear(0.0, 0.4), "block": "0,0.3@0.5,0"})
    handle.set_progress(0.5)
    rates = [placed.layer.p for placed in handle.placed if placed.site.block in (None, 0)]
    assert rates == pytest.approx([0.2, 0.2, 0.3])
    with pytest.raises(InputError, match="is no schedule; write a number"):
        set_rates(decoder(), {"embedding": [0.2]})


def rates_of(model):
    return {placed.site.kind: placed.layer.p for placed in handle_of(model).placed}


def test_rates_set_again_are_the_new_ones_and_the_handle_stays():
    model = decoder()
    handle = set_rates(model, {"blocks.0.*": 0.5, "mlp_output": 0.1})
    handle.set_progress(0.5)
    handle.update({"mlp_output": 0.7})
    assert set_rates(model, {"blocks.0.*": 0.3, "mlp_output": Linear(0.0, 0.4)}) is handle
    assert [placed.layer.p for placed in handle.placed if placed.site.block] == pytest.approx([0.2, 0.2])
    assert {placed.layer.p for placed in handle.placed if placed.site.block == 0} == {0.3}
    assert handle.recipe.rules[1].p == Linear(0.0, 0.4)
    # A model that was compiled meanwhile has the layers already.
    assert set_rates(torch.compile(model, backend="eager"), {"blocks.0.*": 0.1, "mlp_output": 0.2}) is handle
    handle.remove()
    assert torch.equal(model(tokens()), decoder()(tokens()))


def test_other_selectors_take_the_place_of_the_rates_before():
    model = decoder()
    first = set_rates(model, {"mlp_output": 0.5, "embedding": 0.1})
    second = set_rates(model, {"mlp_output": 0.2})
    assert rates_of(model) == {"mlp_output": 0.2}
    with pytest.raises(InputError, match="removed already"):
        first.set_progress(0.1)
    second.remove()
    assert torch.equal(model(tokens()), decoder()(tokens()))


@pytest.mark.parametrize(
    "wrong", [{"mlp_outptu": 0.2}, {"mlp_output": 0.2, "embedding": 1.5}, {"embedding": 2}]
)
def test_rates_that_cannot_be_set_leave_those_before(wrong):
    model = decoder()
    first = set_rates(model, {"mlp_output": Linear(0.5, 0.1), "embedding": 0.1})
    first.set_progress(0.5)
    first.update({"embedding": 0.4})
    before = seeded(model)
    with pytest.raises(InputError):
        set_rates(model, wrong)
    assert rates_of(model) == pytest.approx({"mlp_output": 0.3, "embedding": 0.4})
    assert torch.equal(seeded(model), before)
    first.set_progress(1.0)
    assert rates_of(model) == pytest.approx({"mlp_output": 0.1, "embedding": 0.4})
    first.remove()
    assert torch.equal(model(tokens()), decoder()(tokens()))


def test_rates_do_not_take_the_place_of_a_recipe():
    model = decoder()
    handle = regularize_(model, RATES)
    with pytest.raises(
        InputError, match=r"handle that td\.regularize_ returned for embedding/embedding, .* and 4 more"
    ):
        set_rates(model, {"mlp_output": 0.2})
    assert handle_of(model) is handle
    handle_of(model).remove()
    with pytest.raises(InputError, match=r"is not regularized; call td\.regularize_"):
        handle_of(model)


def test_a_copied_model_has_a_handle_of_its_own():
    model = decoder()
    handle = set_rates(model, {"mlp_output": 0.5})
    twin = copy.deepcopy(model)
    set_rates(twin, {"mlp_output": 0.1})
    assert (rates_of(twin), rates_of(model)) == ({"mlp_output": 0.1}, {"mlp_output": 0.5})
    handle_of(twin).remove()
    assert torch.equal(twin(tokens()), decoder()(tokens()))
    assert handle_of(model) is handle
    assert not torch.equal(model(tokens()), model(tokens()))


@pytest.mark.parametrize("second", [RATES, Recipe([Rule("attention_output", Dropout, p=0.1)])])
def test_regularizing_twice_is_an_error_and_keeps_the_first(second):
    model = decoder()
    regularize_(model, RATES)
    before = seeded(model)
    with pytest.raises(InputError, match=r"regularized already; call remove\(\) .* td\.handle_of\(model\)"):
        regularize_(model, second)
    assert torch.equal(seeded(model), before)


def compiled_whole(model):
    return torch.compile(model, backend="eager")


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def compiled_block(model):
    model.blocks[1] = torch.compile(model.blocks[1], backend="eager")
    return model


@pytest.mark.parametrize("compiled", [compiled_whole, compiled_in_place, compiled_block])
def test_a_compiled_model_is_refused(compiled):
    # Its graph would go on without the layers, and nobody would see it.
    with pytest.raises(InputError, match=r"td\.regularize_ first and torch\.compile after it"):
        regularize_(compiled(decoder()), RATES)


@pytest.mark.parametrize(
    "wrong",
    [
        Rule("mlp_output", LearnedDropout, heads=3),  # does not divide 8
        Rule("attention_weights", LearnedDropout, heads=2),  # has no width
        Rule("mlp_output", LearnedDropout),  # needs heads
        Rule("mlp_output", Dropout, p=0.1, weight=0.1),  # has no penalty
        Rule("mlp_output", Dropout, p=0.6, depth=Linear(1.0, 2.0)),  # 1.2 in the last block
        Rule("mlp_output", Dropout, p=Linear(0.0, 0.6), depth=Linear(1.0, 2.0)),  # the same, at the end
        Rule("mlp_output", Dropout, p="0,0.6@0.2,0", depth=Linear(1.0, 2.0)),  # the same, for a moment
        Rule("mlp_output", DropHead, p=0.1),  # has no heads
        Rule("attention_weights", TokenDropout, p=0.1),  # has no tokens
        Rule("mlp_output", DropKey, p=0.1),  # has no scores
    ],
)
def test_a_recipe_that_fails_halfway_leaves_the_model_as_it_was(wrong):
    model = decoder()
    output, keys = model(tokens()), list(model.state_dict())
    with pytest.raises(InputError):
        regularize_(model, Recipe([Rule("embedding", Dropout, p=0.5), wrong]))
    assert torch.equal(model(tokens()), output)
    assert list(model.state_dict()) == keys
    regularize_(model, RATES)


def test_all_dropout_is_off_in_evaluation():
    model = decoder().eval()
    expected = model(tokens())
    regularize_(model, RATES)
    # The layers take over the model's mode. A hook between two products rounds them one by one.
    torch.testing.assert_close(model(tokens()), expected)
    assert not torch.allclose(seeded(model.train()), expected)
    torch.testing.assert_close(model.eval()(tokens()), expected)


def test_two_evaluation_passes_of_learned_masks_are_bit_equal():
    model = decoder()
    regularize_(model, EVERYWHERE)
    assert not torch.equal(model(tokens()), model(tokens()))
    model.eval()
    assert torch.equal(model(tokens()), model(tokens()))


@pytest.mark.parametrize("kind", ["embedding", "attention_weights", "attention_output", "mlp_hidden"])
def test_each_site_is_really_reached(kind):
    model = decoder()
    expected = model(tokens())
    handle = regularize_(model, Recipe([Rule(kind, Dropout, p=0.5)]))
    assert not torch.allclose(model(tokens()), expected)
    handle.remove()
    regularize_(model, Recipe([Rule(kind, Dropout, p=0.0)]))
    torch.testing.assert_close(model(tokens()), expected)


def test_dropping_the_output_of_every_sublayer_leaves_the_embedding_alone():
    model = decoder()
    kinds = ("attention_output", "mlp_output")
    regularize_(model, Recipe([Rule(kind, Dropout, p=1.0) for kind in kinds]))
    expected = model.norm(model.embedding(tokens())) @ model.embedding.token.weight.T
    torch.testing.assert_close(model(tokens()), expected)


def test_no_layers_means_no_change():
    model = decoder()
    expected = model(tokens())
    handle = regularize_(model, Recipe())
    assert torch.equal(model(tokens()), expected)
    assert (handle.penalty(), handle.metrics(), handle.report()) == (0, {}, "")


@pytest.mark.parametrize("recipe", [EVERYWHERE, RATES], ids=["everywhere", "rates"])
def test_a_deep_copy_runs_its_own_layers(recipe):
    model = decoder()
    handle = regularize_(model, recipe)
    expected = seeded(model)
    twin = copy.deepcopy(model)
    assert torch.equal(seeded(twin), expected)
    with torch.no_grad():
        for placed in handle.placed:
            for parameter in placed.layer.parameters():
                parameter.normal_()
            if isinstance(placed.layer, Dropout):
                placed.layer.set_rate(1.0)
    assert not torch.equal(seeded(model), expected)
    assert torch.equal(seeded(twin), expected)
    handle.remove()
    assert torch.equal(seeded(twin), expected)


@pytest.mark.parametrize("kind", ["embedding", "mlp_hidden", "mlp_output"])
def test_layers_take_over_the_device_and_dtype_of_the_model(kind):
    # The activation at mlp_hidden has no parameters that could show them.
    rule = Rule(kind, LearnedDropout, heads=2, weight=0.1)
    model = decoder().bfloat16()
    handle = regularize_(model, Recipe([rule]))
    (model(tokens(), tokens(2)) + handle.penalty()).backward()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    elsewhere = decoder().to("meta")
    regularize_(elsewhere, Recipe([rule]))
    assert {parameter.device.type for parameter in elsewhere.parameters()} == {"meta"}


def test_a_regularized_model_is_saved_and_loaded_by_its_state_dict():
    model, other = decoder(), decoder()
    regularize_(model, EVERYWHERE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    regularize_(other, EVERYWHERE)
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(seeded(other), seeded(model))


def test_the_same_seed_gives_the_same_layers():
    states = []
    for _ in range(2):
        model = decoder()
        torch.manual_seed(3)
        regularize_(model, EVERYWHERE)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_graph_compiled_for_a_plain_model_does_not_serve_a_regularized_one():
    plain, regularized = decoder(), decoder()
    handle = regularize_(regularized, Recipe([Rule("mlp_output", Dropout, p=0.5)]))
    compiled = torch.compile(plain, backend="eager")
    expected = compiled(tokens())
    acting = torch.compile(regularized, backend="eager")
    assert not acting(tokens()).equal(acting(tokens()))
    handle.remove()
    assert acting(tokens()).equal(expected)
