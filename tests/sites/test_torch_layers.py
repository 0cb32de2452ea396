"""torch's own encoder and decoder layers, whose evaluation goes past their modules unless one is hooked."""

import warnings

import pytest
import torch
from torch import nn

import transformer_dropout as td
from transformer_dropout.sites import KINDS, find_sites, missing_kinds

WIDTH, HEADS, HIDDEN = 16, 4, 32
IN_BLOCK = [kind for kind in KINDS if kind not in ("embedding", "classifier")]
OPTIONS = {"dim_feedforward": HIDDEN, "batch_first": True}


def encoder(p=0.0, **options):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, dropout=p, **(OPTIONS | options))
    with warnings.catch_warnings():
        # torch says why it will not pack padded sequences; that is its own business.
        warnings.simplefilter("ignore", UserWarning)
        return nn.TransformerEncoder(layer, 2)


def decoder(p=0.0):
    torch.manual_seed(0)
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, HEADS, dropout=p, **OPTIONS), 2)


def both(p=0.0):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return nn.Transformer(WIDTH, HEADS, 2, 2, dropout=p, **OPTIONS)


def lone(p=0.0):
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(WIDTH, HEADS, dropout=p, **OPTIONS)


def x(seed=1):
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(seed))


MODELS = {"encoder": (encoder, (x(),)), "decoder": (decoder, (x(), x(2))), "both": (both, (x(), x(2)))}
MODELS["lone layer"] = (lone, (x(),))
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)


def run(model, inputs, seed=2, **options):
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(*inputs, **options)


def learned(select="mlp_output", **arguments):
    rule = td.Rule(select, td.LearnedDropout, heads=4, shift=1.4, eval_mask="mean", **arguments)
    return td.Recipe([rule])


@EVERY_MODEL
def test_every_kind_inside_a_block_is_reached_and_no_other(name):
    assert set(missing_kinds(MODELS[name][0]())) == {"embedding", "classifier"}


@EVERY_MODEL
@pytest.mark.parametrize("kind", IN_BLOCK)
def test_each_kind_drops_in_training_and_only_there_and_comes_out_again(name, kind):
    make, inputs = MODELS[name]
    model = make()
    keys, slow, expected = list(model.state_dict()), run(model, inputs), run(model.eval(), inputs)
    handle = td.set_rates(model, {kind: 0.9})
    # Past the fused kernel, which rounds in another order.
    torch.testing.assert_close(run(model, inputs), expected)
    assert not torch.equal(run(model.train(), inputs), slow)
    handle.update({kind: 0.0})
    torch.testing.assert_close(run(model, inputs), slow)
    handle.remove()
    assert torch.equal(run(model, inputs), slow)
    assert torch.equal(run(model.eval(), inputs), expected)
    assert list(model.state_dict()) == keys


@EVERY_MODEL
def test_rates_of_zero_turn_all_of_the_models_own_dropout_off_and_it_comes_back(name):
    make, inputs = MODELS[name]
    model = make(0.4)
    expected = run(model.eval(), inputs)
    handle = td.set_rates(model.train(), dict.fromkeys(IN_BLOCK, 0.0))
    for seed in range(3):
        torch.testing.assert_close(run(model, inputs, seed), expected)
    handle.remove()
    assert not torch.equal(run(model, inputs, 0), run(model, inputs, 1))
    rates = {part.p for part in model.modules() if isinstance(part, nn.Dropout)}
    assert (
        rates
        == {part.dropout for part in model.modules() if isinstance(part, nn.MultiheadAttention)}
        == {0.4}
    )


@EVERY_MODEL
def test_a_learned_mask_acts_in_evaluation_too(name):
    make, inputs = MODELS[name]
    model = make().eval()
    expected = run(model, inputs)
    handle = td.regularize_(model, learned())
    changed = run(model, inputs)
    assert (changed - expected).abs().max() > 1e-3
    assert torch.equal(run(model, inputs), changed)
    handle.remove()
    assert torch.equal(run(model, inputs), expected)


@pytest.mark.parametrize("kind", ["attention_output", "mlp_hidden", "mlp_output", "block"])
def test_a_learned_mask_knows_the_width_of_its_place(kind):
    handle = td.regularize_(encoder(), learned(kind))
    assert {placed.layer.width for placed in handle.placed} == {HIDDEN if kind == "mlp_hidden" else WIDTH}


@pytest.mark.parametrize("recipe", [learned(), td.Recipe([td.Rule("mlp_output", td.Dropout, p=0.3)])])
def test_an_encoder_that_packs_padded_sequences_still_runs(recipe):
    model = encoder().eval()
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with warnings.catch_warnings():
        # torch calls its packed tensors a prototype.
        warnings.simplefilter("ignore", UserWarning)
        expected = run(model, (x(),), src_key_padding_mask=padding)
    assert model.use_nested_tensor
    handle = td.regularize_(model, recipe)
    actual = run(model, (x(),), src_key_padding_mask=padding)
    if recipe.rules[0].layer is td.Dropout:
        torch.testing.assert_close(actual[~padding], expected[~padding])
    handle.remove()
    assert model.use_nested_tensor


def test_only_a_rate_can_be_set_inside_multi_head_attention():
    with pytest.raises(td.InputError, match=r"self_attn \(attention_weights\) .* only the rate can be set"):
        td.regularize_(encoder(), td.Recipe([td.Rule("attention_weights", td.DropHead, p=0.1)]))


@pytest.mark.parametrize("layer", [td.LearnedDropout, td.DropPath])
def test_layers_that_count_samples_or_tokens_need_the_batch_first(layer):
    model = encoder(batch_first=False)
    arguments = {"p": 0.1} if layer is td.DropPath else {"heads": 4}
    with pytest.raises(td.InputError, match="has the tokens first; build the layer with batch_first=True"):
        td.regularize_(model, td.Recipe([td.Rule("mlp_output", layer, **arguments)]))
    td.set_rates(model, {"mlp_output": 0.5}).remove()


def test_cross_attention_is_a_place_of_its_own():
    sites = [site for site in find_sites(decoder()) if site.block == 0]
    assert [site.path for site in sites if site.kind == "attention_weights"] == [
        "layers.0.self_attn",
        "layers.0.multihead_attn",
    ]
    assert sum(site.kind == "attention_output" for site in sites) == 2
