"""Places read off a run, in models that reading names or the order of modules got wrong."""

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

import transformer_dropout as td
from transformer_dropout.audit.tiny_models import tiny_inputs, tiny_model
from transformer_dropout.sites import find_sites
from transformer_dropout.sites.observation.restore import unchanged
from transformer_dropout.sites.reading.rates import rates_of

WIDTH, HEADS, WORDS = 16, 4, 11
IDS = torch.arange(12).view(2, 6) % WORDS


class Decoder(nn.Module):
    """A plain GPT with the name of another, one dropout for all and made last."""

    def __init__(self, p=0.3):
        super().__init__()
        self.head = nn.Linear(WIDTH, WORDS)
        self.blocks = nn.ModuleList([Block(p), Block(p)])
        self.token, self.position = nn.Embedding(WORDS, WIDTH), nn.Embedding(9, WIDTH)
        self.dropout = nn.Dropout(p)

    def forward(self, ids):
        x = self.dropout(self.token(ids) + self.position(torch.arange(ids.shape[1])))
        for block in self.blocks:
            x = block(x)
        return self.head(self.dropout(x))


class Block(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p = p
        self.down, self.up = nn.Linear(2 * WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.out, self.qkv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x):
        query, key, value = self.qkv(self.norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        rate = self.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=rate)
        x = x + F.dropout(self.out(mixed.transpose(1, 2).flatten(2)), self.p, self.training)
        return x + F.dropout(self.down(F.gelu(self.up(x))), self.p, self.training)


def places(model, inputs=None, block=0):
    """Return path, access and rate of the places outside the blocks and in one, by kind."""
    found = {}
    for site in find_sites(model, inputs):
        if site.block in (None, block):
            found.setdefault(site.kind, []).append((site.path, site.access, site.rate))
    return found


def forward(model, inputs, seed):
    with unchanged(model), torch.no_grad():
        torch.manual_seed(seed)
        output = model.train()(**inputs) if isinstance(inputs, dict) else model.train()(*inputs)
    return output if isinstance(output, torch.Tensor) else output[0]


def assert_still_at_zero(model, inputs):
    """With the model's own rates up and every kind at 0, two training forwards are equal."""
    for _, held, name in rates_of(model):
        held[name] = 0.3
    assert not torch.equal(forward(model, inputs, 0), forward(model, inputs, 1))
    kinds = {site.kind for site in find_sites(model, inputs)} - {"other"}
    handle = td.set_rates(model, dict.fromkeys(kinds, 0.0))
    assert torch.equal(forward(model, inputs, 0), forward(model, inputs, 1))
    handle.remove()
    assert not torch.equal(forward(model, inputs, 0), forward(model, inputs, 1))


def test_the_name_of_a_class_and_the_order_of_modules_mean_nothing():
    assert places(Decoder(), (IDS,)) == {
        "embedding": [("blocks.0", "input", "dropout.p")],
        "attention_weights": [("blocks.0", "rate", "blocks.0.p")],
        "attention_output": [("blocks.0.out", "output", "blocks.0.p")],
        "mlp_hidden": [("blocks.0.down", "input", None)],
        "mlp_output": [("blocks.0.down", "output", "blocks.0.p")],
        "block": [("blocks.0", "block", None)],
        "classifier": [("head", "input", "dropout.p")],
    }
    assert {site.causal for site in find_sites(Decoder(), (IDS,))} == {True}
    assert {site.found for site in find_sites(Decoder(), (IDS,))} == {"run"}


def test_dropout_of_every_making_is_silenced():
    assert_still_at_zero(Decoder(), (IDS,))


@pytest.mark.parametrize(
    "family", ["whisper", "mpnet", "falcon", "beit", "deberta-v2", "switch_transformers"]
)
def test_families_that_went_on_dropping_are_still_at_rate_zero(family):
    model = tiny_model(family)
    if family == "switch_transformers":
        # Its routers add noise, which no kind reaches.
        for module in model.modules():
            if hasattr(module, "jitter_noise"):
                module.jitter_noise = 0.0
    assert_still_at_zero(model, tiny_inputs(model))


def test_a_place_that_nothing_reads_is_not_listed():
    assert "attention_weights" not in places(tiny_model("falcon"))


def test_the_output_of_experts_is_what_routed_and_shared_ones_give_together():
    assert [path for path, _, _ in places(tiny_model("qwen2_moe"))["mlp_output"]] == ["model.layers.0.mlp"]


def test_dropped_weights_are_not_taken_for_an_output():
    found = places(tiny_model("mpnet"))
    assert [path for path, _, _ in found["attention_weights"]] == [
        "mpnet.encoder.layer.0.attention.attn.dropout"
    ]
    assert [path for path, _, _ in found["attention_output"]] == ["mpnet.encoder.layer.0.attention.dropout"]


def test_the_innermost_repeated_blocks_are_the_blocks():
    model = tiny_model("pvt")
    blocks = [site for site in find_sites(model) if site.kind == "block"]
    assert [site.block for site in blocks] == list(range(8))
    assert blocks[0].path.endswith("block.0.0")


def test_parallel_lists_of_parts_are_blocks():
    config = transformers.XLMConfig(
        vocab_size=64, emb_dim=32, n_layers=2, n_heads=4, max_position_embeddings=64
    )
    model = transformers.XLMWithLMHeadModel(config)
    found = places(model, {"input_ids": torch.arange(4, 16).view(2, 6)}, block=1)
    assert [path for path, _, _ in found["attention_output"]] == ["transformer.attentions.1.out_lin"]
    assert [path for path, _, _ in found["mlp_output"]] == ["transformer.ffns.1.lin2"]


def test_own_drop_path_belongs_to_the_block():
    model = tiny_model("beit", drop_path_rate=0.2)
    sites = [site for site in find_sites(model) if site.kind == "block"]
    assert sites[1].rate is not None
    assert "drop_path" in sites[1].rate


def test_whether_a_token_sees_later_ones_is_measured_stack_by_stack():
    causal = {site.path.partition(".")[0]: site.causal for site in find_sites(tiny_model("clip_text_model"))}
    assert set(causal.values()) == {True}
    assert {site.causal for site in find_sites(tiny_model("xlm-roberta"))} == {False}


def test_randomness_that_no_kind_reaches_is_listed_and_warned_of():
    model = tiny_model("mixtral")
    for module in model.modules():
        if hasattr(module, "jitter_noise"):
            module.jitter_noise = 0.1
    others = [site for site in find_sites(model) if site.kind == "other"]
    assert len(others) == 2
    with pytest.warns(UserWarning, match="no layer can take the place of"):
        handle = td.set_rates(model, {"mlp_output": 0.1})
    assert sum("other" in line for line in handle.report().splitlines()) == 2


def test_finding_sites_runs_a_model_once_and_leaves_no_trace():
    model, calls = Decoder(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    find_sites(model.eval(), (IDS,))
    assert len(calls) == 1
    assert not model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.p for module in model.modules() if hasattr(module, "p")] == [0.3] * 3


def test_inputs_that_a_model_does_not_take_are_refused():
    with pytest.raises(td.InputError):
        find_sites(Decoder(), (IDS, IDS, IDS))
