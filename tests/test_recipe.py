import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_dropout import layers
from transformer_dropout.errors import InputError
from transformer_dropout.layers import Dropout, GaussianNoise, LearnedDropout, PrecomputedLearnedDropout
from transformer_dropout.recipe import Recipe, Rule
from transformer_dropout.schedules import Constant, Cosine, Exponential, Linear, Piecewise
from transformer_dropout.sites import KINDS, find_sites
from transformer_dropout.surgery._placement import assign
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

EXAMPLE = Recipe(
    [
        Rule("blocks.[0-1].mlp", Dropout, p=0.3, blocks=[0, 1]),
        Rule("mlp_output", LearnedDropout, heads=2, shift=1.5, penalty="linear", weight=Linear(0.0, 0.1)),
        Rule("attention_output", Dropout, p=Cosine(0.3, 0.0), depth=Linear(0.0, 1.0)),
        Rule("attention_weights", Dropout, p=Exponential(0.0, 0.2, rate=-3.0, until=0.5)),
        Rule("mlp_hidden", PrecomputedLearnedDropout, heads=4, detach=False),
    ]
)


@pytest.fixture(scope="module")
def sites():
    return find_sites(Decoder(11, DecoderConfig(width=8, heads=2, blocks=3, context=5)))


def taken(sites, *rules):
    """Return, for each rule, the places where it acts."""
    pairs = assign(sites, Recipe(rules))
    return [[f"{site.path}:{site.kind}" for site, used in pairs if used is rule] for rule in rules]


def test_a_recipe_survives_plain_data_and_yaml():
    assert Recipe.from_data(EXAMPLE.to_data()) == EXAMPLE
    assert Recipe.from_yaml(EXAMPLE.to_yaml()) == EXAMPLE
    assert Recipe.from_yaml(Recipe().to_yaml()) == Recipe.from_yaml("") == Recipe()


rates = st.floats(0, 1)
schedules = rates | st.builds(Linear, rates, rates) | st.builds(Cosine, rates, rates)
optional_blocks = st.none() | st.lists(st.integers(0, 40), max_size=3)
rate_rules = st.builds(
    Rule,
    st.sampled_from(KINDS) | st.text(min_size=1, max_size=20),
    st.just(Dropout),
    p=schedules,
    depth=st.none() | schedules,
    blocks=optional_blocks,
)
learned_rules = st.builds(
    Rule,
    st.sampled_from(KINDS),
    st.just(LearnedDropout),
    weight=st.none() | schedules,
    blocks=optional_blocks,
    heads=st.integers(1, 16),
    shift=st.floats(0, math.pi),
    penalty=st.sampled_from(["squared", "linear", "entropy"]),
)


@settings(deadline=None)
@given(st.lists(rate_rules | learned_rules, max_size=4))
def test_any_recipe_survives_yaml(rules):
    recipe = Recipe(rules)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_a_recipe_is_read_from_a_file(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(EXAMPLE.to_yaml(), encoding="utf-8")
    assert Recipe.from_yaml(Path(file)) == EXAMPLE


def test_the_yaml_a_person_writes():
    text = """
    - select: mlp_output
      layer: LearnedDropout
      heads: 12
      weight: {linear: {start: 0.0, end: 0.1}}
    - {select: attention_output, layer: Dropout, p: 0.1, blocks: [0, 2]}
    """
    expected = [
        Rule("mlp_output", LearnedDropout, heads=12, weight=Linear(0.0, 0.1)),
        Rule("attention_output", Dropout, p=Constant(0.1), blocks=(0, 2)),
    ]
    assert Recipe.from_yaml(text).rules == tuple(expected)


def test_at_each_site_the_first_rule_that_matches_acts(sites):
    special, general = Rule("blocks.1.mlp", Dropout, p=0.5), Rule("mlp_output", Dropout, p=0.1)
    assert taken(sites, special, general) == [
        ["blocks.1.mlp:mlp_output"],
        ["blocks.0.mlp:mlp_output", "blocks.2.mlp:mlp_output"],
    ]


def test_a_rule_that_comes_too_late_is_an_error(sites):
    special, general = Rule("blocks.1.mlp", Dropout, p=0.5), Rule("mlp_output", Dropout, p=0.1)
    with pytest.raises(InputError, match=r"'blocks.1.mlp' never acts: earlier rules .* move it up"):
        assign(sites, Recipe([general, special]))


def test_a_selector_that_matches_nothing_lists_the_sites(sites):
    with pytest.raises(InputError) as caught:
        assign(sites, Recipe([Rule("mlp_otput", Dropout, p=0.1)]))
    message = str(caught.value)
    assert "'mlp_otput' matches no site" in message
    assert all(f"{site.path} ({site.kind})" in message for site in sites)


def test_a_block_that_the_model_does_not_have_matches_nothing(sites):
    with pytest.raises(
        InputError, match=r"matches no site in the blocks \[3\]; the sites are: .*blocks.2.mlp"
    ):
        assign(sites, Recipe([Rule("mlp_output", Dropout, p=0.1, blocks=[3])]))


def test_selectors_are_kinds_or_unix_patterns_on_the_path(sites):
    outside = [[f"blocks.{block}.mlp:mlp_output" for block in (0, 2)]]
    assert taken(sites, Rule("mlp_output", Dropout, p=0.1, blocks=[2, 0])) == outside
    assert taken(sites, Rule("blocks.[02].mlp", Dropout, p=0.1)) == outside
    assert taken(sites, Rule("embedding", Dropout, p=0.1)) == [["embedding:embedding"]]
    assert len(taken(sites, Rule("blocks.*.mlp*", Dropout, p=0.1))[0]) == 6
    with pytest.raises(InputError, match="matches no site"):  # a pattern matches case as it is written
        assign(sites, Recipe([Rule("Blocks.*", Dropout, p=0.1)]))


def test_the_rate_at_a_site_is_p_of_progress_times_depth_of_the_site(sites):
    rule = Rule("mlp_output", Dropout, p=Linear(0.4, 0.2), depth=Linear(0.5, 1.0))
    places = [site for site in sites if rule.matches(site)]
    assert [rule.rate(site, 0.0) for site in places] == pytest.approx([0.2, 0.3, 0.4])
    assert [rule.rate(site, 1.0) for site in places] == pytest.approx([0.1, 0.15, 0.2])
    halved = Rule("mlp_output", Dropout, p=0.4, depth=0.5)
    assert [halved.rate(site, 0.7) for site in places] == pytest.approx([0.2] * 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": Dropout}, "needs p, the probability of dropping, for Dropout"),
        ({"layer": Dropout, "p": 1.2}, "p is 1.2 .* between 0 and 1"),
        ({"layer": Dropout, "p": Linear(0.0, 1.1)}, "p is 1.1"),
        ({"layer": Dropout, "p": Linear(-0.1, 0.1)}, "p is -0.1"),
        ({"layer": Dropout, "p": math.nan}, "p is nan"),
        ({"layer": Dropout, "p": 0.1, "head": 2}, "Dropout has no argument 'head'"),
        ({"layer": Dropout, "p": "0,1.5@0.25,0"}, "p is 1.5"),  # between the times at which one looks
        ({"layer": Dropout, "p": Piecewise(((0, 0.1), (0.3, -0.2), (0.3, 0.2)))}, "p is -0.2"),
        ({"layer": Dropout, "p": "0.1"}, "at least two points"),
        ({"layer": Dropout, "p": []}, r"\[\] is no schedule; write a number or a schedule such as"),
        ({"layer": Dropout, "p": 0.1, "blocks": 3}, r"blocks .* is 3; write a list such as \[0, 1\]"),
        ({"layer": Dropout, "p": 0.1, "blocks": "03"}, "blocks .* is '03'; write a list"),
        ({"layer": LearnedDropout, "heads": 2, "p": 0.1}, "has no rate that a rule could set; take p and"),
        ({"layer": GaussianNoise, "std": 0.1, "p": 0.1}, "GaussianNoise has no rate .* take p and depth out"),
        ({"layer": LearnedDropout, "heads": 2, "depth": Linear(0, 1)}, "take p and depth out"),
        ({"layer": LearnedDropout, "haeds": 2}, "no argument 'haeds'. Did you mean 'heads'"),
        ({"layer": LearnedDropout, "heads": 2, "wieght": 0.1}, "Did you mean 'weight'"),
        ({"layer": LearnedDropout, "heads": 2, "width": 8}, "no argument 'width'"),
        ({"layer": PrecomputedLearnedDropout, "heads": 2, "source": None}, "no argument 'source'"),
        ({"layer": "Dropout", "p": 0.1}, r"such as td\.Dropout, not 'Dropout'"),
        ({"layer": list, "p": 0.1}, r"such as td\.Dropout, not <class 'list'>"),
    ],
)
def test_a_wrong_rule_is_refused_when_it_is_written(arguments, message):
    with pytest.raises(InputError, match=message):
        Rule("mlp_output", **arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("select: mlp_output", "a list of rules, each beginning with '- select:'"),
        ("- mlp_output", "A rule needs select and layer"),
        ("- {select: mlp_output}", "A rule needs select and layer"),
        ("- {select: mlp_output, layer: Droput, p: 0.1}", "no layer 'Droput'. Did you mean 'Dropout'"),
        ("- {select: mlp_output, layer: Dropout, p: ten}", "p of the rule for 'mlp_output' is 'ten'"),
        ("- {select: a, layer: Dropout, p: {cosin: {start: 0, end: 1}}}", "Did you mean 'cosine'"),
        ("- {select: a, layer: Dropout, p: 0.1, dept: 0.5}", "Did you mean 'depth'"),
        (
            "- {select: a, layer: Dropout, p: 0.1, blocks: 3}",
            r"blocks .* is 3; write a list such as \[0, 1\]",
        ),
        ("- {select: a, layer: Dropout, p: 0.1, blocks: [x]}", "write a list"),
        ("- {select: a, layer: Dropout, p: 0.1, 3: 4}", "has the key 3, which is not a word"),
        ("- [a", "this is not YAML"),
        ("- {select: a, layer: Dropout, p: 0.1, self: 1}", "has the key 'self', which is not a word for it"),
        ("- {select: [a], layer: Dropout, p: 0.1}", "A rule needs select and layer"),
        ("- {select: a, layer: LearnedDropout, weight: -1}", "weight is -1.0"),
        ("- {select: a, layer: LearnedDropout, weight: .nan}", "weight of the rule for 'a' is nan"),
        ("- {select: a, layer: Dropout, p: 0.1, depth: '0,-1'}", "depth is -1.0"),
        (
            "- {select: a, layer: Dropout, p: {linear: {start: 0.0, end: true}}}",
            "takes the numbers start, end",
        ),
        (
            "- {select: a, layer: Dropout, p: {linear: {start: 0.0, end: .nan}}}",
            "takes the numbers start, end",
        ),
        (
            "- {select: a, layer: Dropout, p: {exponential: {start: 0, end: 1, rate: 1000}}}",
            "Exponential has the rate 1000",
        ),
    ],
)
def test_wrong_yaml_is_named_with_what_to_write_instead(text, message):
    with pytest.raises(InputError, match=message):
        Recipe.from_yaml(text)


@pytest.mark.parametrize("rules", [Rule("block", Dropout, p=0.1), {"block": 0.1}, "bert", [("block", 0.1)]])
def test_a_recipe_is_made_of_rules(rules):
    with pytest.raises(InputError, match=r"A recipe is made of rules, td.Recipe\(\[td.Rule"):
        Recipe(rules)


@pytest.mark.parametrize("data", [{"select": "block", "layer": "Dropout", "p": 0.1}, "block", 3])
def test_the_data_of_a_recipe_is_a_list(data):
    with pytest.raises(InputError, match="A recipe is a list of rules"):
        Recipe.from_data(data)


def test_every_exported_layer_can_be_named():
    for name in layers.__all__:
        kind = getattr(layers, name)
        rate = {"p": 0.1} if issubclass(kind, layers.RateLayer) else {}
        assert Rule.from_data({"select": "mlp_output", "layer": name, **rate}).layer is kind


def test_an_internal_class_cannot_be_named():
    with pytest.raises(InputError, match="no layer 'RateLayer'"):
        Rule.from_data({"select": "mlp_output", "layer": "RateLayer", "p": 0.1})


@pytest.mark.parametrize(
    ("key", "value", "wanted"), [("heads", "four", "int"), ("bias", "no", "bool"), ("shift", True, "float")]
)
def test_an_argument_of_the_wrong_type_is_refused(key, value, wanted):
    arguments = {"heads": 2} | {key: value}
    with pytest.raises(InputError, match=f"{key} of LearnedDropout is {value!r}, but .* {wanted}"):
        Rule("mlp_output", LearnedDropout, **arguments)
