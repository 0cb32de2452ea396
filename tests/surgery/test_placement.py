"""Which rule each site gets, and layers that cannot be what a rule says."""

import pytest
from torch import nn

import transformer_dropout as td
from transformer_dropout.errors import InputError
from transformer_dropout.surgery._placement import assign, build_layer, refuse_second_regularization


def site(path, kind="mlp_output", access="output", **facts):
    return td.Site(path=path, kind=kind, access=access, **{"width": 8} | facts)


A, B = site("a", block=0, n_blocks=2), site("b", block=1, n_blocks=2)
OUT_OF_REACH = site("c", kind="other", access="none")


def rule(select="mlp_output", layer=td.Dropout, p=0.1, **words):
    return td.Rule(select, layer, p=p, **words)


def test_a_site_gets_the_first_rule_that_matches_and_none_where_nothing_does():
    first, second = rule("b", p=0.2), rule()
    pairs = assign([A, OUT_OF_REACH, B, site("d", kind="embedding")], td.Recipe([first, second]))
    assert [(each.path, found) for each, found in pairs] == [("a", second), ("b", first)]
    assert assign([A], td.Recipe()) == []


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        ([rule(), rule("b")], "The rule for 'b' never acts: earlier rules take all its sites"),
        ([rule("c")], r"'c' matches no site; the sites are: a \(mlp_output\), b \(mlp_output\)\."),
        ([rule(blocks=[2, 3])], r"'mlp_output' matches no site in the blocks \[2, 3\]; the sites are"),
    ],
)
def test_a_rule_that_acts_nowhere_is_refused(rules, sentence):
    with pytest.raises(InputError, match=sentence):
        assign([A, OUT_OF_REACH, B], td.Recipe(rules))


def test_a_place_that_has_a_layer_is_refused():
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Dropout(), "c": nn.Linear(8, 8)})
    replaced = site("b", access="module")
    rate = site("b", access="rate", rate="b.p", found="run")
    sites = [A, replaced, rate]
    refuse_second_regularization(model, sites)
    model.a.mlp_output_dropout = nn.Identity()
    with pytest.raises(InputError, match="regularized already, as part of a larger one: a has a layer"):
        refuse_second_regularization(model, sites)
    model.b.register_buffer("p_rate", None)
    with pytest.raises(InputError, match="b has a layer"):
        refuse_second_regularization(model, [rate])
    refuse_second_regularization(model, [replaced])
    model["b"] = td.Dropout(0.1)
    with pytest.raises(InputError, match="b has a layer"):
        refuse_second_regularization(model, [replaced])


def test_a_layer_is_made_from_its_rule_and_its_site():
    schedule = td.Linear(0.1, 0.5)
    layer = build_layer(B, rule(p=schedule, depth=td.Linear(0.0, 2.0)), None)
    assert type(layer) is td.Dropout and layer.p == pytest.approx(0.2)
    learned = td.Rule("mlp_output", td.LearnedDropout, heads=4, weight=0.1)
    assert (build_layer(A, learned, None).heads, build_layer(A, learned, None).width) == (4, 8)
    block = td.Rule("mlp_output", td.LearnedBlockDropout, block=2)
    assert build_layer(A, block, None, 5).inputs == 5


def test_the_layers_of_a_rule_may_share_a_source():
    class Sharing(td.layers.DropoutLayer):
        def __init__(self, source=None):
            super().__init__()
            self.source = source

    source = nn.Linear(2, 2)
    assert build_layer(A, td.Rule("mlp_output", Sharing), source).source is source
    assert build_layer(A, td.Rule("mlp_output", Sharing), None).source is None


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"weight": 0.1}, "has a weight, but its Dropout has no penalty to weigh"),
        ({"depth": td.Linear(0.0, 20.0)}, "for 'mlp_output' at b, but a probability of dropping"),
        (
            {"layer": td.LearnedDropout, "p": None, "heads": 2, "penalty": "squared"},
            "a penalty but no weight",
        ),
    ],
)
def test_a_rule_that_its_site_cannot_follow_is_refused(words, sentence):
    with pytest.raises(InputError, match=sentence):
        build_layer(B, rule(**words), None)
