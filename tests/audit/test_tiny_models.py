"""Tiny models: every family offline in a moment, from a name or from a config."""

import json
from functools import partial

import pytest
import torch

import transformer_dropout as td
from transformer_dropout.audit.tiny_models import FAMILIES, saved_model, tiny_inputs, tiny_model
from transformer_dropout.errors import InputError


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_tiny_and_runs(family):
    model = tiny_model(family)
    assert sum(parameter.numel() for parameter in model.parameters()) < 100_000
    assert not model.training
    inputs = tiny_inputs(model)
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits.shape[0] == 2
    assert logits.isfinite().all()
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_there_are_34_families():
    assert len(set(FAMILIES)) == 34


def test_the_same_model_comes_back_and_the_random_state_stays():
    state = torch.get_rng_state()
    one, other = tiny_model("llama"), tiny_model("llama")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_fields_are_set_wherever_they_lie():
    assert tiny_model("llama", attention_dropout=0.2).model.layers[0].self_attn.attention_dropout == 0.2
    for name in ("attn_pdrop", "attn_config.attn_pdrop"):
        assert tiny_model("mpt", **{name: 0.2}).transformer.blocks[0].attn.attn_dropout_p == 0.2


def test_the_attention_is_chosen():
    assert tiny_model("llama", attention="eager").config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tiny_model("lama"), r"'lama' is unknown; the nearest are llama, \w+, \w+\."),
        (lambda: tiny_model("llama", dropout=0.1), r"no dropout field 'dropout'.*attention_dropout"),
        (lambda: tiny_model("llama", attention_dropout=1.5), r"between 0 and 1"),
        (lambda: tiny_model("llama", attention="nonsense"), r"No tiny model of llama could be built"),
        (lambda: tiny_model("missing/config.json"), r"config\.json cannot be read \(no such file"),
        (lambda: tiny_inputs(torch.nn.ReLU()), r"No inputs are known for a ReLU"),
    ],
)
def test_mistakes_are_explained(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.fixture
def config_of(tmp_path):
    def write(config):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config))
        return path

    return write


def test_a_config_is_shrunk_and_keeps_its_rates_and_its_head(config_of):
    path = config_of(
        {
            "model_type": "bert",
            "architectures": ["BertForMaskedLM"],
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "hidden_dropout_prob": 0.25,
            "vocab_size": 30522,
            "dtype": "bfloat16",
        }
    )
    model = tiny_model(path)
    assert type(model).__name__ == "BertForMaskedLM"
    assert (model.config.hidden_size, len(model.bert.encoder.layer)) == (32, 2)
    assert model.bert.embeddings.dropout.p == 0.25
    assert model(**tiny_inputs(model)).logits.shape == (2, 12, 64)


def test_one_entry_a_block_becomes_the_first_and_the_last(config_of):
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    config = {
        "model_type": "gemma3_text",
        "num_hidden_layers": 6,
        "layer_types": kinds,
        "eos_token_id": [1, 106],
    }
    model = tiny_model(config_of(config))
    assert model.config.layer_types == ["sliding_attention", "full_attention"]
    assert model(**tiny_inputs(model)).logits.isfinite().all()


def test_a_family_outside_the_table_is_built_from_its_config(config_of):
    model = tiny_model(config_of({"model_type": "olmo", "num_hidden_layers": 32}))
    assert model(**tiny_inputs(model)).logits.shape == (2, 12, 64)


@pytest.mark.parametrize(
    "asked",
    [{"attn_implementation": "somebody/kernels"}, {"text_config": {"_attn_implementation": "somebody/k"}}],
)
def test_a_kernel_from_elsewhere_is_refused(config_of, asked):
    with pytest.raises(InputError, match="asks for a kernel from elsewhere"):
        tiny_model(config_of({"model_type": "llama", **asked}))


def test_remote_code_is_refused_and_not_run(config_of, tmp_path):
    (tmp_path / "modeling.py").write_text("raise SystemExit('this ran')")
    auto_map = {"AutoModelForCausalLM": "modeling.Model", "AutoConfig": "modeling.Config"}
    path = config_of({"model_type": "llama", "auto_map": auto_map})
    with pytest.raises(InputError, match="remote code"):
        tiny_model(path)
    with pytest.raises(InputError, match="remote code"):
        saved_model(tmp_path)


@pytest.mark.parametrize("config", [{"hidden_size": 3}, {"model_type": "nothing_such"}, [1]])
def test_a_config_that_names_no_family_is_refused(config_of, config):
    with pytest.raises(InputError, match=r"model_type|unknown|not a JSON object"):
        tiny_model(config_of(config))


def test_a_saved_model_is_loaded_with_its_weights(tmp_path):
    model = tiny_model("bert", hidden_dropout_prob=0.2)
    model.save_pretrained(tmp_path)
    loaded = saved_model(tmp_path)
    assert type(loaded) is type(model)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


def test_a_folder_without_weights_cannot_be_loaded(tmp_path):
    tiny_model("bert").config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="could not be loaded"):
        saved_model(tmp_path)


@pytest.mark.parametrize("family", ["detr", "deformable_detr", "swin", "wav2vec2"])
def test_models_of_images_and_sound_name_what_they_drop(family):
    model = tiny_model(family)
    report = td.audit(model.train(), tiny_inputs(model), rebuild=partial(rebuilt, family))
    dropped = {"embedding", "attention_output", "mlp_output"}
    kinds = {event.kind for event in report.events if event.operation != "numpy.random"}
    if family == "wav2vec2":
        assert kinds == {*dropped, "attention_weights", "mlp_hidden", "block"}
        # The head for connectionist classification has the other field.
        assert [finding.site for finding in report.findings] == ["config.final_dropout"]
    else:
        assert kinds == ({"block"} if family == "swin" else dropped)
        assert report.findings == ()


def rebuilt(family, fields):
    return tiny_model(family, **fields)


@pytest.mark.parametrize("family", ["swin", "jamba", "wav2vec2-bert"])
def test_heads_windows_periods_and_features_fit_the_small_sizes(family):
    model = tiny_model(family)
    assert model(**tiny_inputs(model)).logits.isfinite().all()
