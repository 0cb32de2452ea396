"""Attention of Hugging Face models through a layer: written out, it is the model's own attention."""

import copy
import gc
import json
import pickle

import pytest
import torch
import transformers
from torch._dynamo.testing import CompileCounter
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention

import transformer_dropout as td
from transformer_dropout.audit._configured import config_fields
from transformer_dropout.audit.tiny_models import FAMILIES, tiny_inputs, tiny_model
from transformer_dropout.surgery._attention import PREFIX

# Grouped heads, a soft cap, sinks, position biases, windows, encoders, cross-attention.
SPECIAL = ["llama", "gemma2", "gpt_oss", "t5", "mistral", "gemma3_text", "bert", "modernbert", "bart", "gpt2"]
# Their weights are dropped by a module or by the model's own code.
NOT_ROUTED = ("bloom", "gptj", "deberta-v2", "mpt")
# Small enough to drop nothing and scale by one, large enough to take the long way.
HARDLY = 1e-12


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def built(family, attention=None, *, spread=True):
    fields = dict.fromkeys(config_fields(tiny_model(family)), 0.0)
    model = tiny_model(family, attention=attention, **fields)
    if family == "gemma2":
        for layer in model.model.layers:
            # So low that it changes the scores.
            layer.self_attn.attn_logit_softcapping = 0.5
    if spread:
        # Large enough that attention decides the output.
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2 and "embed" not in name:
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def with_layer(model, layer=td.Dropout, p=HARDLY, **arguments):
    rule = td.Rule("attention_weights", layer, p=p, **arguments)
    return td.regularize_(model, td.Recipe([rule]))


def inputs_of(model, padding="none"):
    inputs = tiny_inputs(model)
    if padding == "left":
        inputs["attention_mask"][1, :5] = 0
    if padding == "right":
        inputs["attention_mask"][0, -4:] = 0
    return inputs


def logits(model, inputs, seed=3):
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", SPECIAL)
def test_the_written_out_attention_is_the_models_own(family, attention, padding):
    if attention == "sdpa" and family in ("gpt_oss", "gemma2"):
        attention = None  # has a default of its own
    model = built(family, attention)
    inputs = inputs_of(model, padding)
    expected = logits(model, inputs)
    handle = with_layer(model)
    calls = []
    for placed in handle.placed:
        placed.layer.register_forward_hook(lambda *given: calls.append(1))
    actual = logits(model.train(), inputs)
    assert len(calls) == len(handle.placed)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-3)
    handle.remove()
    assert torch.equal(logits(model.eval(), inputs), expected)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in NOT_ROUTED])
def test_so_it_is_in_every_family(family):
    model = built(family, spread=False)
    inputs = tiny_inputs(model)
    expected = logits(model, inputs)
    with_layer(model)
    torch.testing.assert_close(logits(model.train(), inputs), expected, atol=1e-5, rtol=1e-4)


def test_gradients_are_the_models_own():
    gradients = []
    for layered in (False, True):
        model = built("gemma2").train()
        if layered:
            with_layer(model)
        model(**inputs_of(model, "left"), use_cache=False).logits[0].square().mean().backward()
        gradients.append(model.model.layers[0].self_attn.q_proj.weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-3)


def test_the_special_cases_are_really_there():
    # Else the tests above would prove less than they say.
    llama = built("llama").config
    assert llama.num_key_value_heads < llama.num_attention_heads
    assert hasattr(built("gpt_oss").model.layers[0].self_attn, "sinks")
    assert built("mistral").config.sliding_window < 12
    assert "sliding_attention" in built("gemma3_text").config.layer_types
    assert built("t5").encoder.block[0].layer[0].SelfAttention.has_relative_attention_bias


def test_a_window_hides_what_lies_outside_it():
    model = built("mistral")
    handle = with_layer(model)
    seen = []
    handle.placed[0].layer.register_forward_hook(lambda layer, given, weights: seen.append(given[0]))
    logits(model.train(), inputs_of(model))
    (weights,) = seen
    window = model.config.sliding_window
    assert weights.shape == (2, 4, 12, 12)
    assert weights[:, :, -1, : 12 - window].abs().max() == 0
    assert weights[:, :, -1, 12 - window :].min() > 0


def test_sinks_take_weight_that_no_layer_sees():
    model = built("gpt_oss")
    handle = with_layer(model)
    sums = []
    handle.placed[0].layer.register_forward_hook(lambda layer, given, weights: sums.append(given[0].sum(-1)))
    logits(model.train(), inputs_of(model))
    assert sums[0].max() < 1


def seen_weights(layer, p, family="llama"):
    """Return what a layer gave for the first block's attention, and what it was given."""
    model = built(family, spread=False)
    handle = with_layer(model, layer, p)
    seen = []
    handle.placed[0].layer.register_forward_hook(lambda layer, given, result: seen.append((given[0], result)))
    output = logits(model.train(), inputs_of(model))
    assert torch.isfinite(output).all()
    return seen[0]


def test_drop_head_leaves_out_whole_heads():
    given, result = seen_weights(td.DropHead, 0.5)
    dropped = (result == 0).all(dim=(-1, -2))
    assert 0 < dropped.sum() < dropped.numel()
    kept = (~dropped).sum(dim=1)
    for sample in range(2):
        expected = given[sample] * (4 / kept[sample])
        torch.testing.assert_close(result[sample][~dropped[sample]], expected[~dropped[sample]])


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_drop_key_hides_keys_before_the_softmax(family):
    given, result = seen_weights(td.DropKey, 0.5, family)
    visible = given > torch.finfo(given.dtype).min / 2
    lowered = (result < given)[visible]
    assert 0.3 < lowered.float().mean() < 0.7
    assert torch.equal(result[visible][~lowered], given[visible][~lowered])
    assert (result[~visible] <= torch.finfo(given.dtype).min / 2).all()


def test_drop_key_keeps_the_sum_of_the_weights_at_one(monkeypatch):
    from transformer_dropout.surgery import _attention

    model = built("llama", spread=False)
    with_layer(model, td.DropKey, 0.5)
    sums = []
    weights_of = _attention.attention_weights

    def noted(*given, **others):
        weights = weights_of(*given, **others)
        sums.append(weights.sum(-1))
        return weights

    monkeypatch.setattr(_attention, "attention_weights", noted)
    logits(model.train(), inputs_of(model))
    torch.testing.assert_close(sums[0], torch.ones_like(sums[0]))


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_attentions_are_shown_where_the_model_itself_shows_them(family):
    model = built(family, "eager", spread=False)
    expected = model(**inputs_of(model), output_attentions=True)
    with_layer(model)
    found = model.train()(**inputs_of(model), output_attentions=True)
    names = [name for name in expected if "attentions" in name]
    assert names
    for name in names:
        for weights, others in zip(found[name], expected[name], strict=True):
            torch.testing.assert_close(weights, others)


def test_the_mean_over_masks_is_the_undropped_attention():
    model = built("llama")
    inputs = inputs_of(model)
    attention = model.model.layers[0].self_attn
    seen = []
    attention.register_forward_hook(lambda module, given, result: seen.append(result[0]))
    logits(model, inputs)
    with_layer(model, p=0.3)
    model.train()
    for seed in range(600):
        logits(model, inputs, seed)
    expected, dropped = seen[0], torch.stack(seen[1:])
    error = (dropped.mean(0) - expected).abs() / (dropped.std(0) / len(dropped) ** 0.5 + 1e-6)
    assert error.max() < 6


def test_a_rate_that_moves_compiles_once():
    model = built("llama").train()
    handle = with_layer(model, p=td.Linear(0.1, 0.9))
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    outputs = []
    for step in range(5):
        handle.set_progress(step / 4)
        outputs.append(logits(compiled, tiny_inputs(model)))
    assert counter.frame_count == 1
    assert not any(torch.equal(outputs[0], other) for other in outputs[1:])
    assert torch.equal(logits(compiled, tiny_inputs(model)), outputs[-1])


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention", "paged|sdpa"])
def test_a_kernel_that_shows_no_weights_is_refused(name):
    model = built("llama")
    model.config._attn_implementation_internal = name
    keys = list(model.state_dict())
    with pytest.raises(td.InputError, match=r"where no layer can reach its weights; load it with attn_impl"):
        with_layer(model, p=0.1)
    assert list(model.state_dict()) == keys
    assert model.config._attn_implementation == name


def test_two_models_with_other_implementations_keep_their_own():
    eager, sdpa = built("llama", "eager"), built("llama", "sdpa")
    inputs = inputs_of(eager)
    expected = logits(eager, inputs), logits(sdpa, inputs)
    first, second = with_layer(eager, p=0.5), with_layer(sdpa, p=0.5)
    assert torch.equal(logits(eager, inputs), expected[0])
    assert torch.equal(logits(sdpa, inputs), expected[1])
    first.remove()
    assert eager.config._attn_implementation == "eager"
    assert not torch.equal(logits(sdpa.train(), inputs), expected[1])
    second.remove()
    assert torch.equal(logits(sdpa, inputs), expected[1])


def test_models_that_share_a_config_do_not_share_their_layers():
    config = transformers.LlamaConfig(**json.loads(built("llama").config.to_json_string()))
    one, two = transformers.LlamaForCausalLM(config).eval(), transformers.LlamaForCausalLM(config).eval()
    inputs = inputs_of(one)
    expected = logits(two, inputs)
    first = with_layer(one, p=0.5)
    assert torch.equal(logits(two.train(), inputs), expected)
    second = with_layer(two, p=0.5)
    first.remove()
    assert not torch.equal(logits(two, inputs), expected)
    second.remove()
    assert torch.equal(logits(two, inputs), expected)
    assert all(module.config is config for module in two.modules() if hasattr(module, "config"))


def test_a_saved_config_names_the_models_own_implementation(tmp_path):
    model = built("llama")
    with_layer(model, p=0.5)
    model.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert "transformer_dropout" not in text
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def routes(attention):
    """Return how many modules call an attention through a layer; 0 where the table has no such entry."""
    entry = ALL_ATTENTION_FUNCTIONS.get(PREFIX + attention)
    return 0 if entry is None else len(vars(entry)["routes"])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_removed_it_leaves_no_trace_in_the_table_of_attentions(attention, duplicate):
    gc.collect()
    model, before = built("llama", attention), routes(attention)
    handle = with_layer(model, p=0.5)
    twin = duplicate(model)
    handle.remove()
    # The copy has its layer still.
    inputs = inputs_of(model)
    assert routes(attention) == before + 2
    assert not torch.equal(logits(twin.train(), inputs, 1), logits(twin, inputs, 2))
    td.handle_of(twin).remove()
    assert routes(attention) == before
    assert torch.equal(logits(twin, inputs, 1), logits(twin, inputs, 2))


def test_a_model_that_nobody_has_any_more_keeps_no_table_open():
    gc.collect()
    before = routes("eager")
    with_layer(built("llama", "eager"))
    gc.collect()
    assert routes("eager") == before


def test_garbage_collection_leaves_the_table_of_attentions_alone():
    # A compiled model's guards hold the table's length, and collection may run while they are made.
    with_layer(built("llama", "eager"))
    names = set(ALL_ATTENTION_FUNCTIONS)
    gc.collect()
    assert set(ALL_ATTENTION_FUNCTIONS) == names


class Inheriting(LlamaAttention):
    """What a user makes of a model's attention."""


def test_an_attention_of_the_users_own_evaluates_as_the_one_that_it_inherits_from():
    model = built("llama", "eager")
    inputs = inputs_of(model)
    expected = logits(model, inputs)
    for block in model.model.layers:
        block.self_attn.__class__ = Inheriting
    with_layer(model, p=0.5)
    assert torch.equal(logits(model, inputs), expected)
    assert not torch.equal(logits(model.train(), inputs), expected)


def test_a_file_with_a_table_of_its_own_is_served():
    model = tiny_model("doge", attention="sdpa")
    table = transformers.models.doge.modeling_doge.ALL_ATTENTION_FUNCTIONS
    with_layer(model, p=0.5)
    assert PREFIX + "sdpa" in table
    td.handle_of(model).remove()
    assert PREFIX + "sdpa" not in table
