"""LearnedDropout where it must look at other tokens: padding, encoders, and decoding with a cache."""

import copy

import pytest
import torch
import transformers
from transformers.cache_utils import DynamicCache

import transformer_dropout as td
from transformer_dropout.audit.tiny_models import tiny_inputs, tiny_model
from transformer_dropout.surgery._sequence import let_go_of_cache

FAMILIES = ["gpt2", "llama", "opt", "gemma3_text", "t5", "bart"]
NEW = 12  # with the prompt beyond the window of 8 of gemma3_text


@pytest.fixture(autouse=True)
def quiet():
    """Models that stop at no token say so."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


def regularized(family, select="mlp_output", layer=td.LearnedDropout, **arguments):
    """A model whose masks depend visibly on all tokens that they see."""
    torch.manual_seed(0)
    model = tiny_model(family)
    rule = td.Rule(select, layer, heads=4, shift=1.5, weight=0.1, **arguments)
    handle = td.regularize_(model, td.Recipe([rule]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "qkv.weight" in name and ("dropout" in name or "mask_embedding" in name):
                parameter.normal_(std=0.5)
    return model, handle


def prompts(model, padded):
    inputs = {name: tensor[:, :6] for name, tensor in tiny_inputs(model, batch=3).items()}
    inputs.pop("decoder_input_ids", None)
    if padded:
        for row, padding in enumerate((0, 2, 4)):
            inputs["attention_mask"][row, :padding] = 0
            inputs["input_ids"][row, :padding] = model.config.pad_token_id or 0
    return inputs


def generated(model, inputs, **options):
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0} | options
    return model.generate(
        **inputs, decoder_start_token_id=1, output_logits=True, return_dict_in_generate=True, **options
    )


def assert_the_cache_changes_nothing(model, inputs, **options):
    with_cache, without = (generated(model, inputs, use_cache=cache, **options) for cache in (True, False))
    assert torch.equal(with_cache.sequences, without.sequences)
    assert len(with_cache.logits) == NEW
    torch.testing.assert_close(
        torch.stack(with_cache.logits), torch.stack(without.logits), atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "left-padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_logits_are_those_without_a_cache(family, padded, beams):
    model, _ = regularized(family)
    assert_the_cache_changes_nothing(model, prompts(model, padded), num_beams=beams)


@pytest.mark.parametrize("select", ["embedding", "attention_output", "mlp_hidden", "block"])
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_so_they_are_at_every_place(family, select):
    model, _ = regularized(family, select)
    assert_the_cache_changes_nothing(model, prompts(model, padded=True))


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text", "t5"])
def test_so_they_are_with_masks_computed_from_the_embeddings(family):
    model, _ = regularized(family, layer=td.PrecomputedLearnedDropout)
    assert_the_cache_changes_nothing(model, prompts(model, padded=True))


def test_an_encoder_and_a_decoder_embed_their_masks_apart():
    model, handle = regularized("t5", layer=td.PrecomputedLearnedDropout)
    sources = {placed.site.owner: placed.layer._source[0] for placed in handle.placed}
    assert sources["encoder"] is model.encoder.embed_tokens.mask_embedding
    assert sources["decoder"] is model.decoder.embed_tokens.mask_embedding
    assert (sources["encoder"].causal, sources["decoder"].causal) == (False, True)


def test_several_rules_share_one_cache():
    torch.manual_seed(0)
    model = tiny_model("llama")
    rules = [
        td.Rule(kind, td.LearnedDropout, heads=4, shift=1.5) for kind in ("attention_output", "mlp_output")
    ]
    td.regularize_(model, td.Recipe(rules))
    assert_the_cache_changes_nothing(model, prompts(model, padded=True), num_beams=2)


def test_a_mask_depends_on_the_tokens_before():
    # Else the tests above would pass for a layer that forgets them.
    model, _ = regularized("llama")
    ids = prompts(model, padded=False)["input_ids"]
    changed = ids.clone()
    changed[:, 0] = (changed[:, 0] + 7) % 60 + 3
    layer = model.model.layers[0].mlp.mlp_output_dropout
    x = model.model.embed_tokens(ids)
    y = model.model.embed_tokens(changed)
    assert not torch.equal(layer.gate(x)[:, -1], layer.gate(y)[:, -1])


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "t5"])
def test_left_padding_changes_no_real_token(family):
    model, _ = regularized(family)
    model.eval()
    ids = tiny_inputs(model, batch=1, tokens=5)["input_ids"]
    padding = torch.full((1, 3), model.config.pad_token_id or 0)
    longer = torch.cat([padding, ids], dim=1)
    mask = torch.cat([torch.zeros_like(padding), torch.ones_like(ids)], dim=1)
    body = model.base_model if family != "t5" else model.encoder
    # Those of T5 are relative, so that nothing has to be moved.
    positions = {} if family == "t5" else {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
    plain = body(input_ids=ids).last_hidden_state
    padded = body(input_ids=longer, attention_mask=mask, **positions).last_hidden_state
    torch.testing.assert_close(padded[:, 3:], plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_what_stands_in_the_padding_of_an_encoder_does_not_matter(family):
    model, _ = regularized(family)
    inputs = tiny_inputs(model)
    inputs["attention_mask"][1, -4:] = 0
    other = inputs | {"input_ids": inputs["input_ids"].clone()}
    other["input_ids"][1, -4:] = 9
    one, two = model(**inputs).logits, model(**other).logits
    assert torch.equal(one, two)
    assert not torch.equal(one, model(**(inputs | {"attention_mask": None})).logits)


def test_an_encoder_looks_ahead_and_a_decoder_does_not():
    for family, looks_ahead in (("bert", True), ("llama", False)):
        _, handle = regularized(family)
        x = torch.randn(1, 5, 32)
        y = x.clone()
        y[:, -1] += 1
        layer = handle.placed[0].layer
        assert torch.equal(layer.gate(x)[:, 0], layer.gate(y)[:, 0]) != looks_ahead


def test_padding_counts_in_no_penalty():
    model, handle = regularized("llama")
    model.train()
    inputs = tiny_inputs(model, batch=1, tokens=5)
    model(**inputs, use_cache=False)
    expected = [placed.layer.take_penalty() for placed in handle.placed]
    ids = torch.cat([inputs["input_ids"], torch.full((1, 4), 9)], dim=1)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0, 0]])
    model(input_ids=ids, attention_mask=mask, use_cache=False)
    # The first block has seen no random mask yet.
    torch.testing.assert_close(handle.placed[0].layer.take_penalty(), expected[0])


def test_a_cache_of_fixed_size_is_refused():
    model, _ = regularized("llama")
    with pytest.raises(td.InputError, match="in a DynamicCache, not in a StaticCache; call generate without"):
        generated(model, prompts(model, padded=False), cache_implementation="static")


def test_a_cache_that_was_filled_without_the_layer_is_refused():
    model = tiny_model("llama")
    ids = prompts(model, padded=False)["input_ids"]
    cache = model(ids, use_cache=True).past_key_values
    td.regularize_(model, td.Recipe([td.Rule("mlp_output", td.LearnedDropout, heads=4)]))
    with pytest.raises(td.InputError, match="hand an empty DynamicCache to the first forward"):
        model(ids[:, :1], past_key_values=cache)


def test_a_cache_handed_to_every_forward_works_without_generate():
    model, _ = regularized("llama")
    ids = prompts(model, padded=False)["input_ids"]
    expected = model(ids, use_cache=False).logits
    cache = DynamicCache(config=model.config)
    steps = [model(part, past_key_values=cache).logits for part in ids.split(2, dim=1)]
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, atol=2e-5, rtol=1e-4)


def test_training_through_a_cache_is_refused():
    model, _ = regularized("llama")
    with pytest.raises(td.InputError, match="use_cache=False"):
        model.train()(prompts(model, padded=False)["input_ids"], past_key_values=DynamicCache())


def test_a_mask_that_does_not_say_what_is_padding_is_refused():
    model, _ = regularized("llama")
    mask = torch.ones(3, 1, 6, 6, dtype=torch.bool).tril()
    with pytest.raises(td.InputError, match=r"attention_mask of shape \(batch, tokens\)"):
        model(input_ids=prompts(model, padded=False)["input_ids"], attention_mask=mask)


def test_an_output_layer_that_sees_only_the_last_token_is_named():
    model, _ = regularized("llama", "classifier")
    with pytest.raises(td.InputError, match="not the tokens of whole sequences; place it at"):
        generated(model, prompts(model, padded=False))


@pytest.mark.parametrize("cached", [False, True])
def test_a_copy_made_after_a_forward_has_its_own_padding_and_cache(cached):
    def noted(model):
        """Return what is noted of the running forward, once for each module that reads it."""
        hooks = [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
        return {
            id(hook.args[0]) for hook in hooks if hook.func.__name__ in ("add_sequence", "note_arguments")
        }

    model, _ = regularized("llama")
    inputs = prompts(model, padded=True)
    cache = DynamicCache() if cached else None
    # With a graph, whose tensors could not be copied.
    model(**inputs, past_key_values=cache)
    twin = copy.deepcopy(model)
    assert len(noted(model)) == len(noted(twin)) == 1
    assert noted(model).isdisjoint(noted(twin))
    expected = model(**inputs).logits
    other = {"input_ids": inputs["input_ids"][:1], "attention_mask": torch.ones(1, 6, dtype=torch.long)}
    seen = []
    for layer in (twin.model.layers[0].mlp, model.model.layers[0].mlp):
        layer.mlp_output_dropout.register_forward_pre_hook(
            lambda layer, given, keywords: seen.append(keywords["padding_mask"]), with_kwargs=True
        )
    twin(**other)
    assert torch.equal(model(**inputs).logits, expected)
    assert torch.equal(seen[0], other["attention_mask"])
    assert torch.equal(seen[1], inputs["attention_mask"])
    # Only the twin has run the other sequence.
    with torch.no_grad():
        twin.model.layers[0].mlp.mlp_output_dropout.shift.fill_(3.0)
    assert torch.equal(model(**inputs).logits, expected)


def test_a_cache_is_let_go_when_the_model_has_run():
    model, _ = regularized("llama")
    holders = [h.args[0] for h in model._forward_hooks.values() if h.func is let_go_of_cache]
    generated(model, prompts(model, padded=True))
    assert [holder.cache for holder in holders] == [None]
    assert holders[0].padding_mask is not None
