"""Models as people write them by hand: each reached at every kind it has, and what it has not is named."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import transformer_dropout as td
from transformer_dropout.sites import KINDS, find_sites, missing_kinds

WIDTH, HEADS, WORDS = 16, 4, 11
IDS = torch.arange(12).view(2, 6) % WORDS
IMAGES = torch.linspace(-1, 1, 2 * 3 * 64).view(2, 3, 8, 8)


class FusedAttention(nn.Module):
    """A fused projection and torch's kernel, with the rate as a number."""

    def __init__(self):
        super().__init__()
        self.c_attn = nn.Linear(WIDTH, 3 * WIDTH)
        self.c_proj = nn.Linear(WIDTH, WIDTH)
        self.resid_dropout = nn.Dropout(0.0)
        self.dropout = 0.0

    def forward(self, x):
        query, key, value = (
            part.view(*x.shape[:2], HEADS, -1).transpose(1, 2) for part in self.c_attn(x).split(WIDTH, 2)
        )
        p = self.dropout if self.training else 0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=p, is_causal=True)
        return self.resid_dropout(self.c_proj(mixed.transpose(1, 2).reshape(x.shape)))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.c_fc = nn.Linear(WIDTH, 4 * WIDTH)
        self.act = nn.GELU()
        self.c_proj = nn.Linear(4 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x):
        return self.dropout(self.c_proj(self.act(self.c_fc(x))))


class FusedBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.mixer = nn.LayerNorm(WIDTH), FusedAttention()
        self.ln_2, self.mlp = nn.LayerNorm(WIDTH), Mlp()

    def forward(self, x):
        x = x + self.mixer(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class ModuleDictGpt(nn.Module):
    """Blocks in a dictionary of modules."""

    def __init__(self):
        super().__init__()
        parts = {"wte": nn.Embedding(WORDS, WIDTH), "wpe": nn.Embedding(9, WIDTH), "drop": nn.Dropout(0.0)}
        self.transformer = nn.ModuleDict(
            {**parts, "h": nn.ModuleList([FusedBlock(), FusedBlock()]), "ln_f": nn.LayerNorm(WIDTH)}
        )
        self.lm_head = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, ids):
        parts = self.transformer
        x = parts.drop(parts.wte(ids) + parts.wpe(torch.arange(ids.shape[1])))
        for block in parts.h:
            x = block(x)
        return self.lm_head(parts.ln_f(x))


class Head(nn.Module):
    """One head of attention, with its softmax written out and a dropout of no telling name."""

    def __init__(self):
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(WIDTH, WIDTH // HEADS, bias=False) for _ in range(3))
        self.register_buffer("tril", torch.tril(torch.ones(9, 9)))
        self.dropout = nn.Dropout(0.0)

    def forward(self, x):
        tokens = x.shape[1]
        scores = self.query(x) @ self.key(x).transpose(-2, -1) * (WIDTH // HEADS) ** -0.5
        scores = scores.masked_fill(self.tril[:tokens, :tokens] == 0, float("-inf"))
        return self.dropout(F.softmax(scores, dim=-1)) @ self.value(x)


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList([Head() for _ in range(HEADS)])
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x):
        return self.dropout(self.proj(torch.cat([head(x) for head in self.heads], dim=-1)))


class HeadsBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.sa, self.ffwd = Heads(), Mlp()
        self.ln1, self.ln2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x):
        x = x + self.sa(self.ln1(x))
        return x + self.ffwd(self.ln2(x))


class ListOfHeadsGpt(nn.Module):
    """A module a head, nothing of it called attention."""

    def __init__(self):
        super().__init__()
        self.token_table = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.Sequential(HeadsBlock(), HeadsBlock())
        self.lm_head = nn.Linear(WIDTH, WORDS)

    def forward(self, ids):
        return self.lm_head(self.blocks(self.token_table(ids)))


class NumberedBlocks(nn.Module):
    """Blocks that are attributes, in no list."""

    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(WORDS, WIDTH)
        self.block1, self.block2 = FusedBlock(), FusedBlock()
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, ids):
        return self.head(self.block2(self.block1(self.emb(ids))))


class Attention(nn.Module):
    """Attention whose modules are registered in another order than they are called in."""

    def __init__(self):
        super().__init__()
        self.norm, self.attend, self.dropout = nn.LayerNorm(WIDTH), nn.Softmax(dim=-1), nn.Dropout(0.0)
        self.to_qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.to_out = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.0))

    def forward(self, x):
        query, key, value = (
            part.view(*x.shape[:2], HEADS, -1).transpose(1, 2)
            for part in self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        )
        weights = self.dropout(self.attend(torch.matmul(query, key.transpose(-1, -2)) * 0.5))
        return self.to_out(torch.matmul(weights, value).transpose(1, 2).flatten(2))


class PairsVit(nn.Module):
    """Blocks that are lists of two, which nothing calls; patches by a linear layer."""

    def __init__(self):
        super().__init__()
        self.to_patch_embedding = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, WIDTH))
        self.dropout = nn.Dropout(0.0)
        self.layers = nn.ModuleList([nn.ModuleList([Attention(), Mlp()]) for _ in range(2)])
        self.mlp_head = nn.Linear(WIDTH, 5)

    def forward(self, images):
        patches = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(1, 2).flatten(2)
        x = self.dropout(self.to_patch_embedding(patches))
        for attention, mlp in self.layers:
            x = attention(x) + x
            x = mlp(x) + x
        return self.mlp_head(x.mean(1))


class EncoderBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.self_attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.dropout = nn.Dropout(0.0)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 32), nn.GELU(), nn.Dropout(0.0), nn.Linear(32, WIDTH), nn.Dropout(0.0)
        )

    def forward(self, x):
        y = self.ln_1(x)
        x = self.dropout(self.self_attention(y, y, y, need_weights=False)[0]) + x
        return x + self.mlp(x)


class ConvVit(nn.Module):
    """Torch's attention in a block of one's own, a class token, patches by a convolution."""

    def __init__(self):
        super().__init__()
        self.conv_proj = nn.Conv2d(3, WIDTH, 4, 4)
        self.class_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.dropout = nn.Dropout(0.0)
        self.layers = nn.Sequential(EncoderBlock(), EncoderBlock())
        self.heads = nn.Sequential(nn.Linear(WIDTH, 5))

    def forward(self, images):
        x = self.conv_proj(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.heads(self.layers(self.dropout(x))[:, 0])


class TextClassifier(nn.Module):
    """Torch's encoder between an embedding and a linear layer."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.fc = nn.Linear(WIDTH, 2)

    def forward(self, ids):
        return self.fc(self.encoder(self.embedding(ids)).mean(1))


class PlainMlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.out = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.out(F.relu(self.fc2(F.relu(self.fc1(x)))))


MODELS = {
    ModuleDictGpt: (IDS, set()),
    ListOfHeadsGpt: (IDS, set()),
    NumberedBlocks: (IDS, set()),
    PairsVit: (IMAGES, {"block"}),
    ConvVit: (IMAGES, set()),
    TextClassifier: (IDS, set()),
    PlainMlp: (torch.randn(3, 4), set(KINDS) - {"mlp_hidden", "classifier"}),
}
EVERY_MODEL = pytest.mark.parametrize("make", MODELS)


def run(model, seed=2):
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(MODELS[type(model)][0])


@EVERY_MODEL
def test_what_is_not_reached_is_named(make):
    assert missing_kinds(make()).keys() == MODELS[make][1]


@EVERY_MODEL
def test_each_kind_drops_in_training_and_only_there_and_comes_out_again(make):
    torch.manual_seed(0)
    model = make()
    keys, expected = list(model.state_dict()), run(model.eval())
    for kind in sorted(set(KINDS) - MODELS[make][1]):
        handle = td.set_rates(model, {kind: 0.9})
        assert torch.equal(run(model.eval()), expected), kind
        assert not torch.equal(run(model.train()), expected), kind
        handle.update({kind: 0.0})
        torch.testing.assert_close(run(model), expected)
        handle.remove()
        torch.testing.assert_close(run(model), expected)
        assert list(model.state_dict()) == keys


@EVERY_MODEL
def test_the_width_of_a_place_is_that_of_its_tensor(make):
    model = make()
    kinds = set(KINDS) - MODELS[make][1] - {"attention_weights"}
    handle = td.set_rates(model, dict.fromkeys(kinds, 0.3))
    seen = {}
    for placed in handle.placed:
        placed.layer.register_forward_hook(
            lambda layer, given, result, site=placed.site: seen.update({site: result.shape[-1]})
        )
    run(model.train())
    assert seen == {placed.site: placed.site.width for placed in handle.placed}


def test_the_parts_of_an_attention_are_its_own():
    sites = [site for site in find_sites(ListOfHeadsGpt()) if site.block == 0]
    paths = {kind: [site.path for site in sites if site.kind == kind] for kind in KINDS}
    assert paths["attention_weights"] == [f"blocks.0.sa.heads.{head}.dropout" for head in range(HEADS)]
    assert paths["attention_output"] == ["blocks.0.sa.dropout"]
    assert paths["mlp_output"] == ["blocks.0.ffwd.dropout"]


class Inline(nn.Module):
    """A block that mixes tokens itself, so that no part of it is an attention."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, x):
        x = x + self.o(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))
        return x + self.fc2(F.relu(self.fc1(x)))


class Gate(nn.Module):
    """A gated MLP, whose two linear layers side by side are no chain."""

    def __init__(self):
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


def kinds_of(model, inputs=None):
    return [(site.path, site.kind, site.access) for site in find_sites(model, inputs)]


def test_blocks_that_mix_tokens_themselves_are_reached():
    inside = [
        ("attention_output", "o", "output"),
        ("mlp_hidden", "fc2", "input"),
        ("mlp_output", "fc2", "output"),
    ]
    model, x = nn.Sequential(Inline(), Inline()), torch.randn(2, 5, WIDTH)
    assert kinds_of(model, (x,)) == [
        *(
            place
            for block in "01"
            for place in (
                *((f"{block}.{path}", kind, access) for kind, path, access in inside),
                (block, "block", "block"),
            )
        ),
    ]


def test_layers_side_by_side_are_no_chain():
    assert kinds_of(Gate()) == [("down", "classifier", "input")]


def test_a_model_that_no_run_shows_anything_in_is_refused_with_the_way_out():
    with pytest.raises(
        td.InputError, match=r"name its places yourself, td\.regularize_\(model, recipe, sites="
    ):
        find_sites(nn.ReLU())


def test_two_stacks_have_an_embedding_each():
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(WORDS, WIDTH)
            self.layers = nn.ModuleList([FusedBlock(), FusedBlock()])

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            # As some models have it: made first, called by nothing.
            self.shared = nn.Embedding(WORDS, WIDTH)
            self.encoder, self.decoder = Stack(), Stack()

    sites = [site.path for site in find_sites(Both()) if site.kind == "embedding"]
    assert sites == ["encoder.embed", "decoder.embed"]
