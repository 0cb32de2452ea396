"""Every known family of Hugging Face: what runs is what was counted, and nothing in evaluation."""

import functools
from collections import Counter

import pytest
import torch

import transformer_dropout as td
from transformer_dropout.audit._configured import config_fields
from transformer_dropout.audit.tiny_models import FAMILIES, tiny_inputs, tiny_model

RATE = 0.37

# Dropouts in one training forward with every field at 0.37, as counted in earlier versions by other means.
CALLS = dict.fromkeys(FAMILIES, 2) | {
    "gpt2": 7,
    "phi": 7,
    "phi3": 6,
    "gpt_neox": 7,
    "opt": 6,
    "bloom": 6,
    "mpt": 6,
    "gptj": 7,
    "bert": 8,
    "roberta": 9,
    "distilbert": 6,
    "electra": 9,
    "albert": 6,
    "deberta-v2": 9,
    "modernbert": 8,
    "t5": 24,
    "bart": 22,
    "stablelm": 4,
    "starcoder2": 7,
}

# Fields that no operation of the family's usual head reads.
DEAD = {
    "gpt2": {"summary_first_dropout"},
    "phi3": {"embd_pdrop"},
    "gpt_neox": {"classifier_dropout"},
    "mpt": {"resid_pdrop", "emb_pdrop"},
    "distilbert": {"qa_dropout"},
    "electra": {"summary_last_dropout"},
    "t5": {"classifier_dropout"},
    "bart": {"classifier_dropout"},
}

# Besides dead fields: what else there is to say.
OTHERS = {"albert": {"never-called"}}


def fields_of(family):
    return {name: RATE for name in config_fields(tiny_model(family)) if "layerdrop" not in name}


@functools.cache
def audited(family, attention=None):
    def rebuild(fields):
        return tiny_model(family, attention=attention, **fields)

    model = rebuild(fields_of(family))
    return td.audit(model, tiny_inputs(model), rebuild=rebuild)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_dropout_is_seen_with_its_rate(family):
    running = [event for event in audited(family).events if event.resolved]
    assert len(running) == CALLS[family]
    assert {event.resolved for event in running} == {event.configured for event in running} == {RATE}
    assert all(event.source is not None for event in running)


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_are_measured(family):
    running = [event for event in audited(family).events if event.resolved]
    assert all(abs(event.measured - RATE) < 0.2 for event in running)
    assert abs(sum(event.measured for event in running) / len(running) - RATE) < 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_random_in_evaluation(family):
    assert all(event.training for event in audited(family).events)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_field_is_found_where_it_is_read_or_found_dead(family):
    audit = audited(family)
    assert {field.name for field in audit.fields if field.read_at == ()} == DEAD.get(family, set())
    dead = {finding.site for finding in audit.findings if finding.code == "dead-field"}
    assert dead == {f"config.{name}" for name in DEAD.get(family, ())}


@pytest.mark.parametrize("family", FAMILIES)
def test_findings_are_those_that_are_known(family):
    codes = {finding.code for finding in audited(family).findings} - {"dead-field"}
    assert codes == OTHERS.get(family, set())


@pytest.mark.parametrize("family", FAMILIES)
def test_each_attention_drops_its_weights_once(family):
    kinds = Counter(event.kind for event in audited(family).events if event.resolved)
    assert kinds["attention_weights"] == (6 if family in ("t5", "bart") else 2)
    assert kinds["unknown"] == 0


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "t5", "modernbert"])
def test_eager_attention_shows_the_same(family):
    kinds = [[(e.path, e.kind, e.resolved) for e in audited(family, a).events] for a in (None, "eager")]
    assert kinds[0] == kinds[1]


def test_kinds_are_told_apart():
    kinds = {event.path: event.kind for event in audited("gpt2").events}
    assert kinds["transformer.drop"] == "embedding"
    assert kinds["transformer.h.0.attn"] == "attention_weights"
    assert kinds["transformer.h.0.attn.resid_dropout"] == "attention_output"
    assert kinds["transformer.h.1.mlp.dropout"] == "mlp_output"
    assert {e.kind for e in audited("bart").events} >= {"mlp_hidden", "mlp_output", "attention_output"}
    assert audited("bert").events[-1].kind == "classifier"


def test_one_module_used_twice_is_one_place_with_two_kinds():
    kinds = [event.kind for event in audited("phi").events if event.path == "model.layers.0.resid_dropout"]
    assert kinds == ["attention_output", "mlp_output"]


def test_a_module_whose_rate_is_read_is_not_called_dead():
    audit = audited("gpt2")
    assert "never-called" not in {finding.code for finding in audit.findings}
    assert any("attn_dropout is never called, but its p is read" in note for note in audit.notes)
    assert "transformer.h.0.attn.attn_dropout.p" in {event.source for event in audit.events}


def test_fields_that_share_a_value_are_not_told_apart_without_a_rebuild():
    model = tiny_model("gpt2")
    audit = td.audit(model, tiny_inputs(model))
    assert {field.read_at for field in audit.fields} == {None}
    assert audit.findings == ()


def test_a_config_changed_after_building_is_found():
    model = tiny_model("llama")
    model.config.attention_dropout = 0.25
    (finding,) = td.audit(model, tiny_inputs(model)).findings
    assert (finding.code, finding.site) == ("dead-field", "config.attention_dropout")
    assert "after the model was built" in finding.message


def test_checkpointing_of_hugging_face_repeats_its_masks():
    model = tiny_model("llama", attention_dropout=RATE).train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    inputs = tiny_inputs(model) | {"use_cache": False}
    assert td.audit(model, inputs).findings == ()
    model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    assert [f.code for f in td.audit(model, inputs).findings] == ["recompute-mask-differs"]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()
