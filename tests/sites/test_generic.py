"""Models that no table knows: image models, hand-written blocks, chains, sites given by hand."""

import copy

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

import transformer_dropout as td
from transformer_dropout.audit.tiny_models import tiny_inputs
from transformer_dropout.sites import KINDS, find_sites, missing_kinds
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

WIDTH, HEADS = 16, 4


class Attention(nn.Module):
    """Attention as timm writes it."""

    def __init__(self, p=0.0):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.q_norm = nn.Identity()
        self.attn_drop = nn.Dropout(p)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.proj_drop = nn.Dropout(p)

    def forward(self, x):
        heads = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        p = self.attn_drop.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(*heads, dropout_p=p)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


class Mlp(nn.Module):
    def __init__(self, p=0.0):
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.act = nn.GELU()
        self.drop1 = nn.Dropout(p)
        self.norm = nn.Identity()
        self.fc2 = nn.Linear(4 * WIDTH, WIDTH)
        self.drop2 = nn.Dropout(p)

    def forward(self, x):
        return self.drop2(self.fc2(self.norm(self.drop1(self.act(self.fc1(x))))))


class TimmBlock(nn.Module):
    def __init__(self, p=0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attn = Attention(p)
        self.drop_path1 = nn.Identity()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = Mlp(p)
        self.drop_path2 = nn.Identity()

    def forward(self, x):
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class TimmVit(nn.Module):
    def __init__(self, p=0.0):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, 4, 4)
        self.pos_drop = nn.Dropout(p)
        self.patch_drop = nn.Identity()
        self.blocks = nn.Sequential(TimmBlock(p), TimmBlock(p))
        self.norm = nn.LayerNorm(WIDTH)
        self.head_drop = nn.Dropout(p)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, images):
        x = self.patch_drop(self.pos_drop(self.patch_embed(images).flatten(2).transpose(1, 2)))
        return self.head(self.head_drop(self.norm(self.blocks(x)).mean(1)))


class GptAttention(nn.Module):
    """Attention whose dropouts are registered behind both of its projections, one of them never called."""

    def __init__(self, p):
        super().__init__()
        self.c_attn = nn.Linear(WIDTH, 3 * WIDTH)
        self.c_proj = nn.Linear(WIDTH, WIDTH)
        self.attn_dropout = nn.Dropout(p)
        self.resid_dropout = nn.Dropout(p)
        self.dropout = p

    def forward(self, x):
        heads = self.c_attn(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        p = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True, dropout_p=p)
        return self.resid_dropout(self.c_proj(mixed.transpose(1, 2).flatten(2)))


class Gated(nn.Module):
    """A gated MLP whose way down is written between its ways up."""

    def __init__(self):
        super().__init__()
        self.w1 = nn.Linear(WIDTH, 2 * WIDTH)
        self.w2 = nn.Linear(2 * WIDTH, WIDTH)
        self.w3 = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class GptBlock(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.attn = GptAttention(p)
        self.ln_2 = nn.LayerNorm(WIDTH)
        self.feed_forward = Gated()

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.feed_forward(self.ln_2(x))


class Gpt(nn.Module):
    def __init__(self, p=0.0):
        super().__init__()
        self.wte = nn.Embedding(11, WIDTH)
        self.wpe = nn.Embedding(9, WIDTH)
        self.drop = nn.Dropout(p)
        self.h = nn.ModuleList([GptBlock(p), GptBlock(p)])
        self.lm_head = nn.Linear(WIDTH, 11)

    def forward(self, ids):
        x = self.drop(self.wte(ids) + self.wpe(torch.arange(ids.shape[1])))
        for block in self.h:
            x = block(x)
        return self.lm_head(x)


class MultiheadBlock(nn.Module):
    """Torch's attention in a block of one's own; one dropout for both branches."""

    def __init__(self, p=0.0):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, dropout=p, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH))
        self.dropout = nn.Dropout(p)

    def forward(self, x):
        y = self.norm(x)
        x = x + self.dropout(self.attention(y, y, y)[0])
        return x + self.dropout(self.mlp(x))


class Multihead(nn.Module):
    def __init__(self, p=0.0):
        super().__init__()
        self.token_embedding = nn.Embedding(11, WIDTH)
        self.layers = nn.ModuleList([MultiheadBlock(p), MultiheadBlock(p)])
        self.output = nn.Linear(WIDTH, 11)

    def forward(self, ids):
        x = self.token_embedding(ids)
        for block in self.layers:
            x = block(x)
        return self.output(x)


def hugging_face_vit(p=0.0):
    config = transformers.ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        image_size=8,
        patch_size=4,
        hidden_dropout_prob=p,
        attention_probs_dropout_prob=p,
    )
    return transformers.ViTForImageClassification(config)


IDS = torch.arange(12).view(2, 6) % 11
IMAGES = torch.linspace(-1, 1, 2 * 3 * 64).view(2, 3, 8, 8)
MODELS = {
    "timm": (TimmVit, IMAGES),
    "hugging face": (hugging_face_vit, IMAGES),
    "gpt": (Gpt, IDS),
    "multihead": (Multihead, IDS),
    "decoder": (lambda: Decoder(11, DecoderConfig(width=WIDTH, heads=HEADS, blocks=2, context=6)), IDS),
}
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)


def built(name, *arguments):
    torch.manual_seed(0)
    make, inputs = MODELS[name]
    return make(*arguments), inputs


def run(model, inputs, seed=2):
    torch.manual_seed(seed)
    with torch.no_grad():
        result = model(inputs)
    return getattr(result, "logits", result)


@EVERY_MODEL
def test_every_kind_is_reached(name):
    assert missing_kinds(built(name)[0]) == {}


@EVERY_MODEL
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_drops_in_training_and_only_there_and_comes_out_again(name, kind):
    model, inputs = built(name)
    keys, expected = list(model.state_dict()), run(model.eval(), inputs)
    handle = td.set_rates(model, {kind: 0.9})
    assert torch.equal(run(model, inputs), expected)
    assert not torch.equal(run(model.train(), inputs), expected)
    handle.update({kind: 0.0})
    torch.testing.assert_close(run(model, inputs), expected)
    handle.remove()
    assert torch.equal(run(model, inputs), expected)
    assert list(model.state_dict()) == keys


@EVERY_MODEL
def test_the_layer_of_every_place_is_called_once_and_sees_the_width_that_is_said(name):
    model, inputs = built(name)
    kinds = [kind for kind in KINDS if kind != "attention_weights"]
    handle = td.set_rates(model, dict.fromkeys(kinds, 0.3))
    seen = []
    for placed in handle.placed:
        placed.layer.register_forward_hook(
            lambda layer, given, result, site=placed.site: seen.append((site.name, result.shape[-1]))
        )
    run(model.train(), inputs)
    assert sorted(seen) == sorted((placed.site.name, placed.site.width) for placed in handle.placed)


@pytest.mark.parametrize("name", ["timm", "hugging face", "gpt", "multihead"])
def test_rates_of_zero_turn_all_of_the_models_own_dropout_off(name):
    model, inputs = built(name, 0.4)
    expected = run(model.eval(), inputs)
    handle = td.set_rates(model, dict.fromkeys(KINDS, 0.0))
    for seed in range(3):
        torch.testing.assert_close(run(model.train(), inputs, seed), expected)
    handle.remove()
    assert not torch.equal(run(model, inputs, 0), run(model, inputs, 1))
    assert torch.equal(run(model.eval(), inputs), expected)


@pytest.mark.parametrize("name", ["hugging face", "multihead"])
def test_a_dropout_that_a_block_calls_twice_keeps_its_rate_where_no_rule_is(name):
    model, _ = built(name, 0.4)
    handle = td.set_rates(model, {"attention_output": 0.1})
    rates = sorted(module.p for module in model.modules() if isinstance(module, td.Dropout))
    assert rates == [0.1, 0.1, 0.4, 0.4]
    handle.remove()
    assert not any(isinstance(module, td.Dropout) for module in model.modules())


@EVERY_MODEL
def test_a_learned_mask_acts_in_training_and_in_evaluation(name):
    model, inputs = built(name)
    expected = run(model.eval(), inputs)
    rule = td.Rule("mlp_output", td.LearnedDropout, heads=4, shift=1.4, eval_mask="mean", weight=0.1)
    handle = td.regularize_(model, td.Recipe([rule]))
    changed = run(model, inputs)
    assert not torch.equal(changed, expected)
    assert torch.equal(run(copy.deepcopy(model), inputs), changed)
    assert not torch.equal(run(model.train(), inputs, 0), run(model, inputs, 1))
    handle.remove()
    assert torch.equal(run(model.eval(), inputs), expected)


def test_whether_a_token_sees_later_ones_is_measured():
    causal = {name: {site.causal for site in find_sites(built(name)[0])} for name in MODELS}
    assert causal == {
        "timm": {False},
        "hugging face": {False},
        "gpt": {True},
        "multihead": {False},
        "decoder": {True},
    }


def test_a_recipe_says_what_cannot_be_read_off():
    model, _ = built("multihead")
    rule = td.Rule("mlp_output", td.LearnedDropout, heads=4, causal=False)
    handle = td.regularize_(model, td.Recipe([rule]))
    assert not any(placed.layer.causal for placed in handle.placed)


def test_the_attention_of_a_hugging_face_model_without_a_table_takes_any_layer():
    model, images = built("hugging face")
    expected = run(model.eval(), images)
    td.regularize_(model, td.Recipe([td.Rule("attention_weights", td.DropKey, p=0.5)]))
    assert torch.equal(run(model, images), expected)
    assert not torch.equal(run(model.train(), images), expected)


def test_a_hugging_face_model_without_a_table_hands_padding_and_cache_over():
    config = transformers.FalconConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=64,
        new_decoder_architecture=False,
    )
    torch.manual_seed(0)
    model = transformers.FalconForCausalLM(config).eval()
    rule = td.Rule("mlp_output", td.LearnedDropout, heads=4, shift=1.5)
    handle = td.regularize_(model, td.Recipe([rule]))
    with torch.no_grad():
        for placed in handle.placed:
            placed.layer.qkv.weight.normal_(std=0.5)
    inputs = tiny_inputs(model, tokens=6)
    inputs["attention_mask"][1, :3] = 0
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    cached, whole = (model.generate(**inputs, use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached, whole)


def test_experts_of_a_block_are_named_as_unreachable():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = Attention()
            self.experts = nn.ModuleList([Mlp(), Mlp()])

    model = nn.Sequential(Experts(), Experts())
    assert {"mlp_hidden", "mlp_output"} <= set(missing_kinds(model))
    assert "attention_output" not in missing_kinds(model)


def test_blocks_of_two_kinds_are_still_blocks():
    class Other(TimmBlock):
        pass

    model = nn.Sequential(TimmBlock(), Other())
    assert [site.path for site in find_sites(model) if site.kind == "block"] == ["0", "1"]


def test_the_projections_of_an_attention_are_not_taken_for_a_chain():
    class Lone(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = Attention()

    with pytest.raises(td.InputError, match="No place for a layer was found in a Lone"):
        find_sites(Lone())


def test_a_plain_mlp_has_hidden_units_and_a_classifier():
    model = nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)
    )
    sites = [(site.path, site.kind, site.access, site.width) for site in find_sites(model)]
    assert sites == [
        ("0", "input", "input", 4),
        ("2", "mlp_hidden", "module", 8),
        ("5", "classifier", "input", 6),
    ]
    x = torch.randn(3, 4)
    expected = run(model.eval(), x)
    handle = td.set_rates(model, {"mlp_hidden": 0.5, "classifier": 0.5})
    assert torch.equal(run(model, x), expected)
    assert not torch.equal(run(model.train(), x), expected)
    handle.remove()
    assert isinstance(model[2], nn.Dropout)


def test_a_dropout_of_the_models_own_before_the_first_layer_is_its_place_of_the_input():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    sites = [(site.path, site.kind, site.access, site.width) for site in find_sites(model)]
    assert sites == [("1", "input", "module", 4), ("4", "classifier", "input", 8)]


def test_sites_given_by_hand_are_used_as_they_are():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    site = td.Site(path="1", kind="mlp_hidden", access="output", width=8)
    handle = td.regularize_(model, td.Recipe([td.Rule("mlp_hidden", td.Dropout, p=1.0)]), sites=[site])
    assert torch.equal(model(torch.randn(3, 4)), model[2].bias.expand(3, 2))
    handle.remove()
    with pytest.raises(td.InputError, match=r"matches no site; the sites are: 1 \(mlp_hidden\)"):
        td.regularize_(model, td.Recipe([td.Rule("block", td.Dropout, p=0.1)]), sites=[site])


def test_a_site_by_hand_that_claims_an_attention_function_is_refused():
    model = built("timm")[0]
    site = td.Site(path="blocks.0.attn", kind="attention_weights", access="attention")
    with pytest.raises(td.InputError, match="where no layer can reach its weights"):
        td.regularize_(model, td.Recipe([td.Rule("attention_weights", td.Dropout, p=0.1)]), sites=[site])


class SquareBlock(TimmBlock):
    """A block whose MLP goes on through a layer that keeps the width."""

    def __init__(self, p):
        super().__init__(p)
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mix(self.mlp(self.norm2(x)))


class TwoProducts(TimmBlock):
    """A block whose MLP has no activation, and an own norm in front."""

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp.fc2(self.mlp.fc1(self.norm2(x)))


@pytest.mark.parametrize("block", [lambda: SquareBlock(0.0), lambda: SquareBlock(0.1), TwoProducts])
def test_a_square_layer_behind_an_mlp_is_not_taken_for_its_second_product(block):
    model = TimmVit()
    model.blocks = nn.Sequential(block(), block())
    hidden = [(site.path, site.width) for site in find_sites(model) if site.kind == "mlp_hidden"]
    assert {width for path, width in hidden if ".drop2" not in path} == {4 * WIDTH}
    assert len(hidden) >= 2
