"""``dropout audit``: tables, JSON and exit codes for every kind of target."""

import json

import pytest

from transformer_dropout.audit.tiny_models import tiny_model


def test_a_family_with_a_dead_field(here):
    result = here("audit", "gpt2")
    assert result.code == 1
    assert "transformer.h.*.attn" in result.out
    assert "attention_weights" in result.out
    assert "dead-field at config.summary_first_dropout" in result.out
    assert "attn_dropout is never called, but its p is read" in result.out


def test_accepted_findings_do_not_count(here):
    result = here("audit", "gpt2", "--ignore", "dead-field")
    assert result.code == 0
    assert "No findings." in result.out


def test_a_family_without_dropout(here):
    result = here("audit", "llama")
    assert result.code == 0
    assert "no random or mask operation ran" in result.out
    assert "model.layers.*.self_attn" in result.out


def test_json_holds_everything(here):
    audit = json.loads(here("audit", "bert", "--attention", "eager", "--json").out)
    weights = [event for event in audit["events"] if event["kind"] == "attention_weights"]
    assert [(e["operation"], e["configured"], e["training"]) for e in weights] == [
        ("F.dropout", 0.1, True)
    ] * 2
    assert [finding["code"] for finding in audit["findings"]] == []


def test_a_config_and_a_saved_folder(here, tmp_path):
    tiny_model("llama", attention_dropout=0.25).save_pretrained(tmp_path / "saved")
    for target in (tmp_path / "saved" / "config.json", tmp_path / "saved"):
        result = here("audit", target)
        assert result.code == 0
        assert "0.25" in result.out


def test_a_folder_with_a_config_alone_is_built_tiny(here, tmp_path):
    tiny_model("llama", attention_dropout=0.25).config.save_pretrained(tmp_path / "config_only")
    assert "0.25" in here("audit", tmp_path / "config_only").out


FUNCTIONS = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3), nn.ReLU()), torch.ones(2, 4)

def model_only():
    return build()[0]

def nothing():
    return None
"""


def test_a_function_of_the_user(here, tmp_path):
    (tmp_path / "mine_to_audit.py").write_text(FUNCTIONS)
    result = here("audit", "mine_to_audit:build")
    assert result.code == 0
    assert "0.3" in result.out
    assert "returned a NoneType" in here("audit", "mine_to_audit:nothing").err
    assert "return (model, inputs)" in here("audit", "mine_to_audit:model_only").err
    assert "no function" in here("audit", "mine_to_audit:missing").err


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("gtp2", "nearest are gpt2"),
        ("no_such_module:build", "is no function"),
        ("missing/config.json", "is not a readable config.json"),
        (".", "is not a readable config.json"),
    ],
)
def test_bad_targets_are_one_sentence_and_exit_with_2(here, target, message):
    result = here("audit", target)
    assert result.code == 2
    assert message in result.err
    assert result.out == ""


def test_remote_code_is_refused(here, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "auto_map": {"AutoModel": "x.Y"}}')
    for target in ("config.json", "."):
        result = here("audit", target)
        assert result.code == 2
        assert "never executed" in result.err


def test_the_folder_that_a_run_wrote(here, tiny, learned, tmp_path):
    from transformer_dropout.runs.run import run

    run(tiny(recipe=learned, steps=2, eval_every=2), tmp_path / "run")
    result = here("audit", tmp_path / "run")
    assert result.code == 0
    assert "LearnedDropout" in result.out


def test_help_has_examples(here):
    assert "dropout audit gpt2" in here("audit", "--help").out
