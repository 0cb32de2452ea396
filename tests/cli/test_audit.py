"""``dropout audit``: tables, JSON and exit codes for every kind of target."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from transformer_dropout.audit import CODES, tiny_models
from transformer_dropout.audit.tiny_models import tiny_model
from transformer_dropout.runs.run import run


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

class Strange(nn.Module):
    def forward(self, something):
        return something["nowhere"]

def unknown():
    return Strange()

def nothing():
    return None
"""


def test_a_function_of_the_user(here, tmp_path):
    (tmp_path / "mine_to_audit.py").write_text(FUNCTIONS)
    result = here("audit", "mine_to_audit:build")
    assert result.code == 0
    assert "0.3" in result.out
    assert "returned a NoneType" in here("audit", "mine_to_audit:nothing").err
    assert "0.3" in here("audit", "mine_to_audit:model_only").out
    assert "returns (model, inputs)" in here("audit", "mine_to_audit:unknown").err
    assert "no function" in here("audit", "mine_to_audit:missing").err


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("gtp2", "nearest are gpt2"),
        ("no_such_module:build", "is no function"),
        ("missing/config.json", "config.json cannot be read (no such file or directory)"),
        ("missing.json", "missing.json cannot be read (no such file or directory)"),
        (".", "config.json cannot be read (no such file or directory)"),
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
    run(tiny(recipe=learned, steps=2, eval_every=2), tmp_path / "run")
    result = here("audit", tmp_path / "run")
    assert result.code == 0
    assert "LearnedDropout" in result.out


def test_help_has_examples(here):
    assert "dropout audit gpt2" in here("audit", "--help").out


LONG = "x" * 200


def test_a_pipe_never_breaks_a_path_and_has_no_colours_and_no_lines(command, tmp_path):
    (tmp_path / f"deep_{LONG}_to_audit.py").write_text(DEEP)
    for name in ("audit", "sites"):
        result = command(name, f"deep_{LONG}_to_audit:build")
        assert result.code == 0
        lines = result.out.splitlines()
        assert lines[0].startswith(f"deep_{LONG}_to_audit:build: ")
        assert sum(".".join([LONG] * 2) in line for line in lines) >= 4
        assert not re.search("[\x1b\u2500-\u257f]", result.out)


DEEP = """
import torch
from torch import nn

def build():
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
    for _ in range(2):
        model = nn.Sequential(__import__("collections").OrderedDict([("x" * 200, model)]))
    return model, torch.ones(2, 3, 8)
"""

BROKEN = """
import torch
from torch import nn

def raises():
    raise OSError("no such disk\\nand more")

def misfits():
    return nn.Linear(4, 4), torch.ones(2, 5)

def takes_two():
    return nn.Bilinear(4, 4, 4), torch.ones(2, 4)
"""


@pytest.mark.parametrize("command", ["audit", "sites"])
def test_without_transformers_a_family_says_what_to_install(here, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "transformers", None)
    result = here(command, "gpt2")
    assert result.code == 2
    assert (
        "gpt2 is a model of transformers; run: pip install 'transformer-dropout[transformers]'" in result.err
    )


@pytest.mark.parametrize("command", ["audit", "sites"])
def test_a_target_that_fails_is_one_sentence(here, tmp_path, command):
    (tmp_path / "broken_to_audit.py").write_text(BROKEN)
    (tmp_path / "unreadable_to_audit.py").write_text("import torch\ndef build(:\n")
    found = {name: here(command, f"broken_to_audit:{name}") for name in ("raises", "misfits", "takes_two")}
    found["syntax"] = here(command, "unreadable_to_audit:build")
    assert "could not be opened: OSError: no such disk" in found["raises"].err
    assert "broken_to_audit.py:6" in found["raises"].err
    assert "could not be opened: SyntaxError" in found["syntax"].err
    if command == "audit":
        assert "could not be run with a tensor of shape (2, 5): mat1 and mat2 shapes" in found["misfits"].err
        assert "takes (input1, input2), and cannot be called with a tensor" in found["takes_two"].err
    for result in found.values():
        assert "Traceback" not in result.err + result.out
        assert result.code in (0, 1) if "error" not in result.err else result.code == 2


def test_a_saved_speech_model_and_a_broken_library_are_no_traceback(here, tmp_path, monkeypatch):
    tiny_whisper().save_pretrained(tmp_path / "speech")
    result = here("audit", tmp_path / "speech")
    assert result.code in (0, 1)
    assert "model.encoder.layers" in result.out

    def broken(*args):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(tiny_models, "class_of", broken)
    result = here("audit", tmp_path / "speech")
    assert result.code == 2
    assert "operator torchvision::nms does not exist" in result.err
    assert "Traceback" not in result.err


def tiny_whisper():
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 16, "encoder_ffn_dim": 16, "vocab_size": 64}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = WhisperConfig(
        **sizes, **heads, **tokens, max_source_positions=16, dropout=0.1, suppress_tokens=None
    )
    config.begin_suppress_tokens = None
    return WhisperForConditionalGeneration(config)


def test_a_page_is_written_beside_the_tables(here, tmp_path):
    result = here("audit", "gpt2", "--html", "report.html")
    assert "transformer.h.*.attn" in result.out
    assert "dead-field" in (tmp_path / "report.html").read_text(encoding="utf-8")
    result = here("audit", "gpt2", "--html", "missing/report.html")
    assert result.code == 2
    assert "could not be written: No such file" in result.err


def test_a_code_that_no_finding_has_and_an_attention_that_nobody_chooses_are_refused(here, tiny, tmp_path):
    run(tiny(steps=1), tmp_path / "run")
    for words, part in [
        (("gpt2", "--ignore", "dead-feild"), "--ignore is 'dead-feild'. Did you mean 'dead-field'?"),
        (("run", "--attention", "eager"), "--attention chooses that of a Hugging Face model, and run"),
        (("os:getcwd", "--attention", "eager"), "--attention chooses that of a Hugging Face model"),
    ]:
        result = here("audit", *words)
        assert (result.code, result.out, len(result.err.splitlines())) == (2, "", 1)
        assert part in result.err


def test_every_code_of_a_finding_is_known():
    folder = Path(tiny_models.__file__).parent
    sources = "".join(path.read_text() for path in folder.glob("*.py"))
    assert set(re.findall(r"code=\"([a-z-]+)\"", sources)) == set(CODES)


def test_a_saved_whisper_with_its_generation_config_is_seen(here, tmp_path):
    model = tiny_model("whisper", dropout=0.1)
    model.generation_config.suppress_tokens = [5]
    model.save_pretrained(tmp_path / "whisper")
    result = here("audit", tmp_path / "whisper")
    assert result.code == 0 and "model.decoder.layers.*" in result.out
    rows = here("sites", tmp_path / "whisper").out
    assert "model.encoder.layers.*.self_attn" in rows


@pytest.mark.slow
@pytest.mark.parametrize("name", ["audit", "sites"])
def test_a_broken_torchvision_is_one_sentence(tmp_path, environment, name):
    (tmp_path / "torchvision").mkdir()
    stub = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "torchvision" / "__init__.py").write_text(stub)
    path = f"{tmp_path}{os.pathsep}{Path(__file__).parents[2] / 'src'}"
    done = subprocess.run(
        [sys.executable, "-m", "transformer_dropout", name, "vit"],
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": path},
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "operator torchvision::nms does not exist" in line
