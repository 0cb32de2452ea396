"""`Recipe.from_config`: the names of configs, compared with where each family really drops."""

import pytest
import torch
import transformers

import transformer_dropout as td
from transformer_dropout.audit._configured import config_fields
from transformer_dropout.audit.tiny_models import FAMILIES, tiny_inputs, tiny_model
from transformer_dropout.sites import KINDS, find_sites, own_rate
from transformer_dropout.sites._config_fields import BY_MODEL_TYPE, FIELDS

P = 0.37
# Read by a head that the tiny model does not have.
OF_OTHER_HEADS = {
    ("gpt2", "summary_first_dropout"),
    ("gpt_neox", "classifier_dropout"),
    ("t5", "classifier_dropout"),
    ("bart", "classifier_dropout"),
}
# One place among others of its kind, which keeps its own rate.
OF_ONE_PLACE = {("deberta-v2", "pooler_dropout")}
# The rate of the classifier where its own is unset.
FALLS_BACK = ("deberta-v2", "hidden_dropout_prob")
FALLING_BACK = ["bert", "roberta", "electra", "deberta-v2"]


def rates(recipe):
    return {rule.select: rule.p(0.0) for rule in recipe.rules}


def fields_of(family):
    return list(config_fields(tiny_model(family)))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_field_means_the_kinds_at_which_the_model_drops(family):
    nothing = dict.fromkeys(fields_of(family), 0.0)
    for name in nothing:
        model = tiny_model(family, **(nothing | {name: P}))
        really = {site.kind for site in find_sites(model) if own_rate(model, site) == P}
        short = name.rpartition(".")[2]
        said = rates(td.Recipe.from_config(model.config))
        if (family, name) in OF_OTHER_HEADS:
            assert (said, really) == ({"classifier": P}, set())
        elif (family, name) in OF_ONE_PLACE:
            assert (said, really) == ({}, {"classifier"})
        else:
            # DeBERTa's config does not even have the field that would be unset.
            assert set(said) == really - ({"classifier"} if (family, name) == FALLS_BACK else set()), name
            assert set(said.values()) <= {P}
        assert short in FIELDS


@pytest.mark.parametrize("family", FAMILIES)
def test_the_recipe_of_a_model_leaves_its_rates_as_they_are(family):
    fields = fields_of(family)
    others = {
        name for name in fields if (family, name) in OF_OTHER_HEADS | OF_ONE_PLACE or "layerdrop" in name
    }
    chosen = dict.fromkeys(fields, P) | dict.fromkeys(others, 0.0)
    model = tiny_model(family, **chosen)
    before = ran(model)
    recipe = td.Recipe.from_config(model.config)
    handle = td.regularize_(model, recipe)
    assert ran(model) == before
    handle.remove()
    assert ran(model) == before


def ran(model):
    events = td.audit(model, tiny_inputs(model)).events
    return sorted((event.kind, round(event.resolved, 6)) for event in events if event.resolved)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_config_of_every_family_as_it_comes_applies(family):
    model = tiny_model(family)
    recipe = td.Recipe.from_config(model.config)
    td.regularize_(model, recipe)
    assert td.Recipe.from_config(model.config.to_dict()) == recipe
    assert td.Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_the_names_of_gpt2_and_bert():
    gpt2 = transformers.GPT2Config(embd_pdrop=0.1, attn_pdrop=0.2, resid_pdrop=0.3, summary_first_dropout=0.4)
    assert rates(td.Recipe.from_config(gpt2)) == {
        "embedding": 0.1,
        "attention_weights": 0.2,
        "attention_output": 0.3,
        "mlp_output": 0.3,
        "classifier": 0.4,
    }
    bert = transformers.BertConfig(
        hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.1, classifier_dropout=0.3
    )
    assert rates(td.Recipe.from_config(bert)) == {
        "embedding": 0.2,
        "attention_weights": 0.1,
        "attention_output": 0.2,
        "mlp_output": 0.2,
        "classifier": 0.3,
    }


def test_a_field_of_a_seldom_head_says_nothing_at_its_default():
    # Else every GPT-2 would get dropout before its output layer, which it never had.
    assert "classifier" not in rates(td.Recipe.from_config(transformers.GPT2Config()))


@pytest.mark.parametrize("family", FALLING_BACK)
def test_an_unset_field_leaves_the_models_own_fallback(family):
    model = tiny_model(family, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
    recipe = td.Recipe.from_config(model.config)
    assert "classifier" not in rates(recipe)
    td.regularize_(model, recipe)
    assert any(type(module) is torch.nn.Dropout and module.p == 0.2 for module in model.modules())


def test_a_few_fields_in_a_dictionary():
    assert rates(td.Recipe.from_config({"resid_pdrop": 0.1})) == {"attention_output": 0.1, "mlp_output": 0.1}
    assert rates(td.Recipe.from_config({"attention_dropout": 0, "dropout": None})) == {}
    assert rates(td.Recipe.from_config({"model_type": "opt", "dropout": 0.2})) == {
        "attention_output": 0.2,
        "mlp_output": 0.2,
    }


def test_the_rules_stand_in_the_order_of_the_forward_pass():
    kinds = list(
        rates(td.Recipe.from_config({"classifier_dropout": 0.1, "dropout_rate": 0.1, "layerdrop": 0.2}))
    )
    assert kinds == list(KINDS)


def test_layer_drop_stays_layer_drop():
    (rule,) = td.Recipe.from_config(transformers.OPTConfig(dropout=0.0, layerdrop=0.2)).rules
    assert (rule.select, rule.layer, rule.p(0.0)) == ("block", td.LayerDrop, 0.2)


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"resid_prdop": 0.1}, r"'resid_prdop' is not known.* Did you mean 'resid_pdrop'\?"),
        (
            {"model_type": "new", "strange_dropout": 0.1},
            "'strange_dropout' is not known, so its 0.1 has no place",
        ),
        ({"resid_pdrop": "0.1"}, "resid_pdrop is '0.1', but a probability"),
        ({"resid_pdrop": True}, "resid_pdrop is True"),
        ({"resid_pdrop": 1.5}, "p is 1.5"),
        (
            {"resid_pdrop": 0.1, "hidden_dropout": 0.2},
            "resid_pdrop is 0.1 and hidden_dropout is 0.2, but both",
        ),
        ({"encoder_layerdrop": 0.1, "decoder_layerdrop": 0.2}, "both are for block"),
    ],
)
def test_what_a_config_cannot_say(config, part):
    with pytest.raises(td.InputError, match=part):
        td.Recipe.from_config(config)


def test_a_field_that_is_not_of_dropout_is_passed_over_in_a_whole_config():
    config = {"model_type": "x", "hidden_size": 3, "use_dropout": True, "text_config": {"attn_pdrop": 0.2}}
    assert rates(td.Recipe.from_config(config)) == {"attention_weights": 0.2}


def test_the_table_uses_known_words():
    kinds = [*FIELDS.values(), *(kinds for table in BY_MODEL_TYPE.values() for kinds in table.values())]
    assert {kind for some in kinds for kind in some} <= set(KINDS)
    assert all(name in FIELDS for table in BY_MODEL_TYPE.values() for name in table)
    assert set(BY_MODEL_TYPE) <= set(FAMILIES)
