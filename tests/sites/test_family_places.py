"""Places of single families: rates that several places share, blocks left out, heads, DeBERTa's own."""

import json

import pytest
import torch
from transformers import AlbertConfig, AlbertModel
from transformers.models.auto import modeling_auto

import transformer_dropout as td
from transformer_dropout.audit.tiny_models import FAMILIES, tiny_inputs, tiny_model
from transformer_dropout.sites import find_sites, missing_kinds

P = 0.37


def output(model, seed=5):
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(**tiny_inputs(model))[0]


def layers_that_drop(model):
    """Return, by path of the module, the rates of our layers."""
    return {
        path: module.p
        for path, module in model.named_modules()
        if isinstance(module, td.Dropout | td.LayerDrop)
    }


def of_kind(model, model_class_name, tmp_path, **fields):
    """Build a tiny model of another class or with other fields than the family's usual."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": model, "architectures": [model_class_name], **fields}))
    return path


@pytest.mark.parametrize("family", ["opt", "bart"])
def test_places_that_share_a_silenced_rate_keep_it_and_it_is_put_back(family):
    model = tiny_model(family, dropout=P)
    layers = [module for module in model.modules() if "DecoderLayer" in type(module).__name__]
    handle = td.set_rates(model, {"mlp_output": 0.11})
    assert {layer.dropout for layer in layers} == {0.0}
    rates = layers_that_drop(model)
    assert {rate for path, rate in rates.items() if "fc2" in path} == {0.11}
    # Their place stands in for the float that both shared.
    shared = {path: rate for path, rate in rates.items() if "out_proj" in path}
    assert set(shared.values()) == {P}
    assert len(shared) == (2 if family == "opt" else 6)
    handle.remove()
    assert {layer.dropout for layer in layers} == {P}
    assert layers_that_drop(model) == {}


def test_phi_keeps_the_rate_of_the_module_that_it_calls_twice():
    model = tiny_model("phi", resid_pdrop=P)
    handle = td.set_rates(model, {"attention_output": 0.11})
    assert model.model.layers[0].resid_dropout.p == 0.0
    assert layers_that_drop(model)["model.layers.0.mlp.mlp_output_dropout"] == P
    handle.remove()
    assert model.model.layers[0].resid_dropout.p == P


@pytest.mark.parametrize(
    ("family", "fields"),
    [("opt", {"layerdrop": P}), ("bart", {"encoder_layerdrop": P, "decoder_layerdrop": 0.2})],
)
def test_blocks_that_the_model_leaves_out_itself_are_taken_over(family, fields):
    model = tiny_model(family, **fields)
    decoder = model.model.decoder
    before = decoder.layerdrop
    handle = td.regularize_(model, td.Recipe([td.Rule("block", td.LayerDrop, p=0.6, blocks=[1])]))
    assert decoder.layerdrop == 0.0
    rates = layers_that_drop(model)
    assert rates["model.decoder.layers.1.block_dropout"] == 0.6
    assert rates["model.decoder.layers.0.block_dropout"] == before
    if family == "bart":
        assert rates["model.encoder.layers.0.block_dropout"] == P
    handle.remove()
    assert decoder.layerdrop == before


@pytest.mark.parametrize("family", ["wav2vec2", "hubert"])
def test_the_rate_of_leaving_blocks_out_may_stand_in_a_config(family):
    model = tiny_model(family, layerdrop=0.5).train()
    model.config.apply_spec_augment = False
    inputs = tiny_inputs(model)
    kinds = {site.kind for site in td.find_sites(model, inputs)} - {"other"}
    handle = td.set_rates(model, dict.fromkeys(kinds, 0.0), inputs=inputs)
    first = model(**inputs)[0]
    assert all(torch.equal(model(**inputs)[0], first) for _ in range(8))
    handle.remove()
    assert model.config.layerdrop == 0.5


def test_the_embedding_of_a_block_that_runs_again_is_dropped_once():
    config = AlbertConfig(
        vocab_size=50, embedding_size=8, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32,
    )  # fmt: skip
    model, inputs = AlbertModel(config), {"input_ids": torch.arange(14).view(2, 7)}
    td.set_rates(model, {"embedding": 0.5}, inputs=inputs)
    events = [event for event in td.audit(model, inputs).events if event.training]
    assert [(event.kind, event.resolved) for event in events] == [("embedding", 0.5)]


def deberta_v3(tmp_path):
    """The layout of the published DeBERTa v3, and the convolution of the large v2."""
    fields = {
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["c2p", "p2c"],
        "norm_rel_ebd": "layer_norm",
        "conv_kernel_size": 3,
        "pooler_dropout": P,
        "hidden_dropout_prob": P,
        "attention_probs_dropout_prob": P,
    }
    return tiny_model(of_kind("deberta-v2", "DebertaV2ForSequenceClassification", tmp_path, **fields))


def test_all_dropout_of_deberta_v3_is_reached(tmp_path):
    model = deberta_v3(tmp_path)
    expected = output(model)
    handle = td.set_rates(model, dict.fromkeys({site.kind for site in find_sites(model)}, 0.0))
    assert all(torch.equal(output(model.train(), seed), expected) for seed in range(3))
    handle.remove()
    assert not torch.equal(output(model, 0), output(model, 1))


def test_distances_that_deberta_embeds_take_a_rate_and_nothing_else(tmp_path):
    model = deberta_v3(tmp_path)
    handle = td.set_rates(model, {"embedding": 0.2})
    assert {layer.attention.self.pos_dropout.p for layer in model.deberta.encoder.layer} == {0.2}
    handle.remove()
    with pytest.raises(td.InputError, match=r"pos_dropout \(embedding\)"):
        td.regularize_(model, td.Recipe([td.Rule("embedding", td.LearnedDropout, heads=4)]))


def heads_of(family):
    names = {
        getattr(modeling_auto, mapping).get(family)
        for mapping in dir(modeling_auto)
        if mapping.startswith("MODEL_FOR_") and mapping.endswith("MAPPING_NAMES")
    }
    # No base models, no other inputs than tokens, and no class made for another family's config.
    return sorted(
        name
        for name in names
        if isinstance(name, str)
        and ("For" in name or "LMHead" in name)
        and "MultipleChoice" not in name
        and name != "JevForDecision"
    )


def head_output(model, seed):
    """Run a model whose head may read the last token only where it is the end."""
    inputs = tiny_inputs(model)
    inputs["input_ids"][:, -1] = 2
    if model.config.is_encoder_decoder and "Conditional" not in type(model).__name__:
        del inputs["decoder_input_ids"]
    torch.manual_seed(seed)
    with torch.no_grad():
        values = model(**inputs).values()
    return torch.cat([value.flatten() for value in values if isinstance(value, torch.Tensor)])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_dropout_of_every_head_is_reached(family, tmp_path):
    for name in heads_of(family):
        model = tiny_model(
            of_kind(family, name, tmp_path, pad_token_id=0, eos_token_id=2, decoder_start_token_id=0)
        )
        assert "classifier" not in missing_kinds(model), name
        expected = head_output(model, 0)
        handle = td.set_rates(model, {site.kind: 0.0 for site in find_sites(model)})
        assert torch.equal(head_output(model.train(), 1), head_output(model, 2)), name
        handle.update({"classifier": 0.9})
        assert not torch.equal(head_output(model, 1), head_output(model, 2)), name
        assert torch.equal(head_output(model.eval(), 0), expected), name


@pytest.mark.parametrize("family", ["llama", "bert", "gpt2", "bart"])
def test_a_model_without_a_head_has_no_classifier(family, tmp_path):
    base = modeling_auto.MODEL_MAPPING_NAMES[family]
    model = tiny_model(of_kind(family, base, tmp_path))
    assert set(missing_kinds(model)) == {"classifier"}
    td.set_rates(model, dict.fromkeys({site.kind for site in find_sites(model)}, 0.3)).remove()
    with pytest.raises(td.InputError, match="'classifier' matches no site"):
        td.set_rates(model, {"classifier": 0.1})


def test_an_encoder_used_as_a_decoder_is_causal(tmp_path):
    plain, decoding = (
        tiny_model("bert"),
        tiny_model(of_kind("bert", "BertLMHeadModel", tmp_path, is_decoder=True)),
    )
    assert {site.causal for site in find_sites(plain)} == {False}
    assert {site.causal for site in find_sites(decoding)} == {True}


def test_scores_that_no_function_shows_are_refused():
    recipe = td.Recipe([td.Rule("attention_weights", td.DropKey, p=0.1)])
    # GPT-J shows them from transformers 5.24 on.
    for family in ("bloom", "deberta-v2", "mpt"):
        model = tiny_model(family)
        with pytest.raises(td.InputError, match=r"DropKey|only the rate"):
            td.regularize_(model, recipe)
    with pytest.raises(td.InputError, match="scores before the softmax"):
        td.regularize_(tiny_model("llama"), td.Recipe([td.Rule("mlp_output", td.DropKey, p=0.1)]))
