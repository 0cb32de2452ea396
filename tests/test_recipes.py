import pytest
import torch

import transformer_dropout as td
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

N_BLOCKS = 3
READY = {
    "small_data": td.recipes.small_data(),
    "gpt2": td.recipes.gpt2(),
    "bert": td.recipes.bert(),
    "lima": td.recipes.lima(),
    "early": td.recipes.early(),
    "late": td.recipes.late(),
    "layer_drop": td.recipes.layer_drop(),
    "adaptive": td.recipes.adaptive(),
    "layerwise": td.recipes.layerwise(N_BLOCKS),
    "layerwise, falling": td.recipes.layerwise(N_BLOCKS, falling=True),
    "learned": td.recipes.learned(heads=2),
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Decoder(19, DecoderConfig(width=8, heads=2, blocks=N_BLOCKS, context=6))


def rates(model, recipe, progress, kind=None):
    """Return the rates that a recipe sets, by kind of site and in the order of the blocks."""
    reg = td.regularize_(model, recipe)
    reg.set_progress(progress)
    found = [p.layer.p for p in reg.placed if kind in (None, p.site.kind)]
    reg.remove()
    return found


@pytest.mark.parametrize("name", READY)
def test_a_ready_recipe_trains_the_decoder_and_comes_off_again(name, model):
    tokens = torch.arange(12).view(2, 6)
    expected = model.eval()(tokens)
    reg = td.regularize_(model.train(), READY[name])
    for progress in (0.0, 0.5, 1.0):
        reg.set_progress(progress)
        (model(tokens, tokens) + reg.penalty()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    reg.remove()
    assert torch.equal(model.eval()(tokens), expected)


@pytest.mark.parametrize("name", READY)
def test_a_ready_recipe_survives_yaml(name):
    assert td.Recipe.from_yaml(READY[name].to_yaml()) == READY[name]


@pytest.mark.parametrize("name", ["gpt2", "bert", "small_data"])
def test_the_published_ones_are_one_rate_in_four_places(name, model):
    recipe = getattr(td.recipes, name)(0.2)
    assert [rule.select for rule in recipe.rules] == [
        "embedding",
        "attention_weights",
        "attention_output",
        "mlp_output",
    ]
    assert set(rates(model, recipe, 0.0)) == set(rates(model, recipe, 1.0)) == {0.2}
    assert set(rates(model, READY[name], 0.0)) == {0.1}


def test_lima_rises_from_zero_to_p_on_the_residual_stream_only(model):
    for kind in ("attention_output", "mlp_output"):
        assert rates(model, READY["lima"], 0.5, kind) == pytest.approx([0, 0.15, 0.3])
    assert not rates(model, READY["lima"], 0.5, "attention_weights")


def test_early_late_and_adaptive_move_over_training(model):
    found = {
        name: [rates(model, READY[name], t)[0] for t in (0.0, 1 / 12, 0.2, 1.0)]
        for name in ("early", "late", "adaptive")
    }
    assert found["early"] == pytest.approx([0.1, 0.05, 0, 0])
    assert found["late"] == pytest.approx([0, 0, 0.1, 0.1])
    assert found["adaptive"] == pytest.approx([0.1, 0.1 * 11 / 12, 0.08, 0])


def test_layer_drop_sits_on_whole_blocks(model):
    assert rates(model, td.recipes.layer_drop(0.3), 0.5, "block") == [0.3] * N_BLOCKS


@pytest.mark.parametrize("kind", ["attention_weights", "attention_output", "mlp_output"])
def test_layerwise_adds_the_same_step_at_every_block(kind, model):
    assert rates(model, READY["layerwise"], 0.0, kind) == pytest.approx([0.1, 0.12, 0.14])
    assert rates(model, READY["layerwise, falling"], 0.0, kind) == pytest.approx([0.14, 0.12, 0.1])


@pytest.mark.parametrize("falling", [False, True])
def test_layerwise_at_its_edges(falling, model):
    for base, step, expected in ((0.0, 0.1, [0, 0.1, 0.2]), (0.0, 0.0, [0] * 3), (0.2, 0.4, [0.2, 0.6, 1])):
        recipe = td.recipes.layerwise(N_BLOCKS, base, step, falling)
        assert rates(model, recipe, 0.0, "mlp_output") == pytest.approx(expected[:: -1 if falling else 1])
    single = Decoder(19, DecoderConfig(width=8, heads=2, blocks=1, context=6))
    assert rates(single, td.recipes.layerwise(1, falling=falling), 0.0, "mlp_output") == [0.1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"n_blocks": 48}, "a rate of 1.04 in 48 blocks; with base=0.1 use a step of at most 0.0191489"),
        ({"n_blocks": 0}, "at least 1 block"),
        ({"n_blocks": 3, "step": -0.02}, "falling=True"),
        ({"n_blocks": 3, "base": -0.1}, "base=-0.1"),
    ],
)
def test_layerwise_says_what_does_not_fit(words, message):
    with pytest.raises(td.InputError, match=message):
        td.recipes.layerwise(**words)


def test_learned_is_the_published_place_and_penalty(model):
    (rule,) = td.recipes.learned(heads=2, weight=td.Linear(0, 0.1)).rules
    assert (rule.select, rule.layer, rule.arguments) == ("mlp_output", td.LearnedDropout, {"heads": 2})
    reg = td.regularize_(model, READY["learned"])
    model(torch.arange(6)[None])
    assert reg.penalty().item() == pytest.approx(0.1 * 0.5, rel=0.01)  # the masks start at M = 1


@pytest.mark.parametrize("name", ["gpt2", "bert", "lima", "early", "late", "layer_drop", "adaptive"])
def test_a_rate_above_one_is_refused(name):
    with pytest.raises(td.InputError, match="between 0 and 1"):
        getattr(td.recipes, name)(1.5)


def test_every_ready_recipe_names_its_paper():
    functions = {name.split(",")[0] for name in READY}
    assert all("Paper:" in getattr(td.recipes, name).__doc__ for name in functions)
