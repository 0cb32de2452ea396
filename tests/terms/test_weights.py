"""Which weights decay, on small modules by hand and on real families; learning rates by layer."""

import os
import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import transformer_dropout as td
from transformer_dropout.terms.weights import (
    matching,
    select_parameters,
    starting_values,
    trainable_parameters,
    value_at,
)


class RMSNorm(nn.Module):
    """One gain for each head and channel, as some families have."""

    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))


class Block(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.head_norm = RMSNorm(2, width)
        self.mix = nn.Linear(width, width)
        self.experts = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(5))
        self.down_proj_bias = nn.Parameter(torch.zeros(5, width))
        self.layer_scale = nn.Parameter(torch.ones(width, 1, 1))


class Model(nn.Module):
    """Everything that decay and layers have to tell apart."""

    def __init__(self, width=4, blocks=3):
        super().__init__()
        self.tokens = nn.Embedding(7, width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.relative_bias = nn.Embedding(3, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.positions = nn.Embedding(6, width)
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, 1)
        self.output = nn.Linear(width, 7, bias=False)
        self.output.weight = self.tokens.weight


DECAYED = {
    *{f"blocks.{b}.mix.weight" for b in range(3)},
    *{f"blocks.{b}.experts.{e}.weight" for b in range(3) for e in range(5)},
    *{"tokens.weight", "positions.weight", "score.weight"},
}


def names_in(model, parameters):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter] for parameter in parameters}


def one_group_each(model, groups):
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    return sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_matrices_decay_and_norms_biases_and_vectors_of_any_shape_do_not():
    model = Model()
    decayed, others = td.weight_decay_groups(model, 0.3)
    assert names_in(model, decayed["params"]) == DECAYED
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert one_group_each(model, [decayed, others])


def test_embeddings_can_be_left_alone_together_with_what_is_tied_to_them():
    model = Model()
    decayed, others = td.weight_decay_groups(model, 0.3, decay_embeddings=False)
    assert names_in(model, decayed["params"]) == DECAYED - {"tokens.weight", "positions.weight"}
    assert one_group_each(model, [decayed, others])


def test_patterns_leave_more_alone_by_any_name_of_a_tied_parameter():
    model = Model()
    decayed, _ = td.weight_decay_groups(model, 0.3, exclude=["output.*", "blocks.1.*"])
    left = {name for name in DECAYED if not name.startswith("blocks.1.")} - {"tokens.weight"}
    assert names_in(model, decayed["params"]) == left


def test_frozen_parameters_are_in_no_group():
    model = Model()
    model.blocks.requires_grad_(False)
    groups = td.weight_decay_groups(model, 0.3)
    assert one_group_each(model, groups)
    assert not any("blocks" in n for g in groups for n in names_in(model, g["params"]))


def test_a_model_without_vectors_still_gives_two_groups_that_an_optimizer_takes():
    groups = td.weight_decay_groups(nn.Linear(2, 2, bias=False), 0.1)
    assert [len(group["params"]) for group in groups] == [1, 0]
    torch.optim.AdamW(groups, lr=0.1).step()


@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_a_negative_decay_is_refused(value):
    with pytest.raises(td.InputError, match="at least 0"):
        td.weight_decay_groups(Model(), value)
    with pytest.raises(td.InputError, match=r"^weight decay is .*at least 0"):
        td.set_weight_decay(torch.optim.AdamW(td.weight_decay_groups(Model(), 0.1)), value)


def test_a_model_with_nothing_to_train_is_refused():
    with pytest.raises(td.InputError, match="no trainable parameter"):
        td.weight_decay_groups(Model().requires_grad_(False), 0.1)


def test_an_embedding_is_no_norm_whatever_its_name():
    class NormedEmbedding(nn.Embedding):
        pass

    embedding = NormedEmbedding(7, 4)
    decayed, _ = td.weight_decay_groups(nn.Sequential(embedding), 0.3)
    assert decayed["params"] == [embedding.weight]


def test_a_schedule_is_read_from_the_first_step_to_the_last_and_nowhere_else():
    schedule = td.Linear(2.0, 4.0)
    assert [value_at(schedule, progress) for progress in (0, 0.5, 1)] == [2.0, 3.0, 4.0]
    for progress in (-0.01, 1.01, float("nan")):
        with pytest.raises(td.InputError, match="fraction of training done"):
            value_at(schedule, progress)


# Selection


def test_a_pattern_that_matches_nothing_lists_the_names_with_numbers_as_stars():
    with pytest.raises(td.InputError) as error:
        select_parameters(Model(), ["tokens.*", "layers.*"])
    message = str(error.value)
    assert "'layers.*' matches no parameter" in message
    assert "blocks.*.experts.*.weight" in message
    assert "blocks.0." not in message
    assert message.count("\n") == 0


def test_the_listed_names_are_patterns_that_match():
    model = Model()
    listed = {re.sub(r"\.\d+(?=\.)", ".*", h.names[0]) for h in trainable_parameters(model)}
    assert matching(trainable_parameters(model), listed) == trainable_parameters(model)


def test_patterns_take_exactly_what_they_name():
    model = Model()
    selected = select_parameters(model, "blocks.0.*norm.weight")
    assert [held.names[0] for held in selected] == ["blocks.0.norm.weight", "blocks.0.head_norm.weight"]


def test_a_model_of_vectors_has_no_matrix_to_select():
    with pytest.raises(td.InputError, match=r"no trainable matrix.*select='weight'"):
        select_parameters(nn.LayerNorm(3))


def test_a_module_used_twice_counts_once():
    model = nn.Sequential(linear := nn.Linear(2, 2), linear)
    (held,) = select_parameters(model)
    assert held.names == ["0.weight", "1.weight"]


def test_starting_values_are_copies_found_under_any_name_and_of_the_same_shape():
    model = Model()
    parameters = select_parameters(model)
    pretrained = {"output.weight": torch.full((7, 4), 2.0), "score.weight": torch.zeros(3, 4)}
    known, values = starting_values(parameters, pretrained)
    assert [held.names[0] for held in known] == ["tokens.weight"]
    assert values[0].equal(pretrained["output.weight"])
    pretrained["output.weight"].zero_()
    assert values[0].eq(2.0).all()


def test_a_state_dict_of_another_model_is_refused():
    with pytest.raises(td.InputError, match=r"no value for tokens.weight.*'bert.tokens.weight'"):
        starting_values(select_parameters(Model()), {"bert.tokens.weight": torch.zeros(7, 4)})


# A weight decay that moves


def test_only_decayed_groups_move_and_come_back_from_zero():
    optimizer = torch.optim.AdamW(td.weight_decay_groups(Model(), 0.1))
    for value in (0.0, 0.2):
        td.set_weight_decay(optimizer, value)
        assert [group["weight_decay"] for group in optimizer.param_groups] == [value, 0.0]


def test_a_moved_decay_acts_on_matrices_only_and_survives_the_optimizers_state():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(td.weight_decay_groups(model, 0.0), lr=1.0)
    td.set_weight_decay(optimizer, 0.25)
    again = torch.optim.SGD(td.weight_decay_groups(model, 0.0), lr=1.0)
    again.load_state_dict(optimizer.state_dict())
    td.set_weight_decay(again, 0.5)
    before = model.weight.detach().clone(), model.bias.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    again.step()
    assert model.weight.equal(before[0] / 2)
    assert model.bias.equal(before[1])


def test_an_optimizer_of_other_groups_is_refused():
    with pytest.raises(td.InputError, match="weight_decay_groups"):
        td.set_weight_decay(torch.optim.AdamW(Model().parameters()), 0.1)


# Learning rates by layer


def rates(model, groups):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: group["lr"] for group in groups for p in group["params"]}


def test_learning_rates_fall_from_the_head_to_the_embeddings():
    model = Model()
    groups = td.layerwise_lr_groups(model, 1.0, 0.5, weight_decay=0.1)
    rate = rates(model, groups)
    for name in ("tokens.weight", "class_token", "relative_bias.weight", "positions.weight"):
        assert rate[name] == 0.5**4
    for block in range(3):
        of_block = {r for name, r in rate.items() if name.startswith(f"blocks.{block}.")}
        assert of_block == {0.5 ** (3 - block)}
    for name in ("norm.weight", "norm.bias", "score.weight", "score.bias"):
        assert rate[name] == 1.0
    assert one_group_each(model, groups)


def test_each_part_keeps_its_decayed_and_undecayed_parameters_apart():
    model = Model()
    groups = td.layerwise_lr_groups(model, 0.2, 0.9, weight_decay=0.1)
    decayed = [p for group in groups if group["weight_decay"] == 0.1 for p in group["params"]]
    assert names_in(model, decayed) == DECAYED
    assert {group["weight_decay"] for group in groups} == {0.1, 0.0}
    assert list(dict.fromkeys(g["part"] for g in groups)) == [
        *("embeddings", "blocks.0", "blocks.1", "blocks.2", "head")
    ]
    assert all(group["lr"] == 0.2 * group["lr_scale"] for group in groups)
    optimizer = torch.optim.AdamW(groups)
    td.set_weight_decay(optimizer, 0.0)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}


def test_a_decay_of_one_gives_every_layer_the_same_rate():
    model = Model()
    assert set(rates(model, td.layerwise_lr_groups(model, 0.3, 1.0)).values()) == {0.3}


@given(st.floats(0.01, 1), st.integers(1, 6), st.floats(1e-6, 1))
def test_neighbouring_blocks_differ_by_the_decay(decay, blocks, lr):
    model = Model(2, blocks)
    rate = rates(model, td.layerwise_lr_groups(model, lr, decay))
    ladder = [
        rate["tokens.weight"],
        *(rate[f"blocks.{b}.mix.weight"] for b in range(blocks)),
        rate["score.weight"],
    ]
    assert ladder[-1] == lr
    for lower, upper in pairwise(ladder):
        assert lower == pytest.approx(upper * decay)


def test_head_patterns_win_over_the_place_in_the_model():
    model = Model()
    rate = rates(model, td.layerwise_lr_groups(model, 1.0, 0.5, head="class_token"))
    assert rate["class_token"] == 1.0
    assert rate["tokens.weight"] == 0.5**4


def test_two_equally_long_lists_are_refused_until_one_is_named():
    model = nn.Module()
    model.encoder, model.decoder = nn.ModuleList([nn.Linear(2, 2)] * 1), nn.ModuleList([nn.Linear(2, 2)])
    with pytest.raises(td.InputError, match="encoder, decoder are equally long"):
        td.layerwise_lr_groups(model, 1.0, 0.5)
    rate = rates(model, td.layerwise_lr_groups(model, 1.0, 0.5, blocks="decoder"))
    assert (rate["encoder.0.weight"], rate["decoder.0.weight"]) == (0.25, 0.5)


def test_blocks_in_a_sequential_are_found_when_named():
    model = nn.Sequential(
        nn.Embedding(3, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 1)
    )
    with pytest.raises(td.InputError, match=r"there is no nn\.ModuleList"):
        td.layerwise_lr_groups(model, 1.0, 0.5)
    rate = rates(model, td.layerwise_lr_groups(model, 1.0, 0.5, blocks="1"))
    weights = [rate[f"{name}.weight"] for name in ("0", "1.0", "1.1", "2")]
    assert weights == [0.125, 0.25, 0.5, 1.0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"decay": 0.0}, "above 0 and at most 1"),
        ({"decay": 1.1}, "above 0 and at most 1"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"blocks": "block"}, "Did you mean 'blocks'"),
        ({"head": "classifier.*"}, "'classifier.*' matches no parameter"),
    ],
)
def test_bad_input_is_refused(arguments, says):
    with pytest.raises(td.InputError, match=re.escape(says)):
        td.layerwise_lr_groups(Model(), **({"lr": 1.0, "decay": 0.5} | arguments))


# Real families

FAMILIES = """
albert apertus arcee audio-spectrogram-transformer bart beit bert big_bird biogpt blenderbot bloom camembert
clip_text_model codegen cohere cohere2 convbert data2vec-text deberta deberta-v2 deit diffllama dinov2
distilbert electra ernie esm exaone4 fnet gemma gemma2 gemma3_text glm glm4 gpt2 gpt_bigcode gpt_neo gpt_neox
gpt_oss gptj granite helium ibert imagegpt jetmoe layoutlm llama longformer m2m_100 mamba marian mbart
megatron-bert mistral mixtral mobilebert modernbert mpnet mpt nemotron nystromformer olmo olmo2 olmoe opt
pegasus phi phi3 qwen2 qwen3 rembert roberta roformer rwkv siglip_vision_model smollm3 splinter stablelm
starcoder2 switch_transformers t5 umt5 vit vit_mae wav2vec2-bert whisper xglm xlm-roberta
"""

# What families call their sizes; a family takes those that its config has.
WIDTHS = """
hidden_size d_model n_embd dim hidden_dim intermediate_size d_ff encoder_ffn_dim decoder_ffn_dim ffn_dim
embedding_size max_position_embeddings n_positions
"""
LAYERS = """
num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_key_value_heads
"""
HEADS = """
num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_experts
num_local_experts
"""
SMALL = (
    dict.fromkeys(WIDTHS.split(), 32)
    | dict.fromkeys(LAYERS.split(), 2)
    | dict.fromkeys(HEADS.split(), 4)
    | {"vocab_size": 64, "head_dim": 8, "d_kv": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
)
OWN = {"gpt_neo": {"attention_types": [[["global", "local"], 1]]}}


@pytest.fixture
def tiny_family():
    """Build a tiny random model of a family, without a network."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()

    def build(family):
        defaults = transformers.CONFIG_MAPPING[family]()
        sizes = {name: value for name, value in SMALL.items() if hasattr(defaults, name)}
        config = transformers.AutoConfig.for_model(family, **sizes | OWN.get(family, {}))
        return transformers.AutoModel.from_config(config)

    return build


def obvious(model):
    """Sort what no one would dispute, by other means than the function: by type, and by attribute name."""
    conv1d = pytest.importorskip("transformers").pytorch_utils.Conv1D
    linear, alone = set(), set()
    for path, module in model.named_modules():
        own = dict(module.named_parameters(path, recurse=False))
        if isinstance(module, nn.Linear | conv1d):
            linear |= {p for name, p in own.items() if name.endswith("weight")}
        if re.search(r"(norm|ln)(_?\w{1,5})?$", path, re.IGNORECASE):
            alone |= set(own.values())
        alone |= {p for name, p in own.items() if name.endswith("bias") or p.ndim < 2}
    return linear, alone


def right_groups(model):
    decayed, others = td.weight_decay_groups(model, 0.1)
    assert one_group_each(model, [decayed, others])
    linear, alone = obvious(model)
    trainable = {p for p in model.parameters() if p.requires_grad}
    assert linear & trainable <= set(decayed["params"])
    assert alone & trainable <= set(others["params"])
    assert linear


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "t5", "gpt_oss"])
@pytest.mark.filterwarnings("ignore")
def test_groups_are_right_on_a_few_real_families(family, tiny_family):
    right_groups(tiny_family(family))


@pytest.mark.filterwarnings("ignore")
def test_groups_are_right_on_fifty_real_families(tiny_family):
    families = FAMILIES.split()
    assert len(set(families)) >= 50
    for family in families:
        model = tiny_family(family)
        assert model.num_parameters() < 3_000_000, family
        right_groups(model)


@pytest.mark.parametrize(
    ("family", "lowest", "block"),
    [
        ("bert", "embeddings.LayerNorm.weight", "encoder.layer.1.output.dense.weight"),
        ("gpt2", "wpe.weight", "h.1.mlp.c_fc.weight"),
        ("mixtral", "embed_tokens.weight", "layers.1.self_attn.q_proj.weight"),
        ("vit", "embeddings.patch_embeddings.projection.weight", "layers.1.mlp.fc1.weight"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_layers_of_real_families_are_found(family, lowest, block, tiny_family):
    model = tiny_family(family)
    rate = rates(model, td.layerwise_lr_groups(model, 1.0, 0.5))
    assert rate[lowest] == 0.125
    assert rate[block] == 0.5
    assert max(rate.values()) == 1.0


@pytest.mark.filterwarnings("ignore")
def test_an_encoder_and_a_decoder_have_to_be_told_apart(tiny_family):
    with pytest.raises(td.InputError, match=r"encoder.block, decoder.block are equally long"):
        td.layerwise_lr_groups(tiny_family("t5"), 1.0, 0.5)


class Gated(nn.Module):
    """A matrix beside a part that asks for a group of its own, whose inner module asks for another one."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Linear(3, 3)
        self.gate = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        self.gate.optimizer_options = {"weight_decay": 0.0, "lr_scale": 4.0}
        self.gate[1].optimizer_options = {"weight_decay": 0.2}


def test_a_module_may_ask_for_a_group_of_its_own():
    model = Gated()
    decayed, others, gate, inner = td.weight_decay_groups(model, 0.3)
    assert decayed["params"] == [model.matrix.weight] and others["params"] == [model.matrix.bias]
    assert gate == {
        "params": [model.gate[0].weight, model.gate[0].bias],
        "weight_decay": 0.0,
        "decayed": False,
        "lr_scale": 4.0,
    }
    assert inner["params"] == list(model.gate[1].parameters())
    assert (inner["weight_decay"], inner["decayed"]) == (0.2, False)
    optimizer = torch.optim.AdamW([decayed, others, gate, inner])
    td.set_weight_decay(optimizer, 0.9)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.9, 0.0, 0.0, 0.2]


def test_a_rate_of_its_own_reaches_the_optimizer():
    model = Gated()
    groups = td.weight_decay_groups(model, 0.3, lr=0.01)
    optimizer = torch.optim.SGD(groups, lr=0.01)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.01, 0.04, 0.01]
    sum(p.sum() for p in model.parameters()).backward()
    before = [p.detach().clone() for p in (model.matrix.bias, model.gate[0].bias)]
    optimizer.step()
    moved = [
        (b - p).mean().item() for b, p in zip(before, (model.matrix.bias, model.gate[0].bias), strict=True)
    ]
    assert moved == pytest.approx([0.01, 0.04], rel=1e-4)


def test_layerwise_rates_multiply_the_rate_of_a_module():
    model = nn.Sequential(nn.ModuleList([Gated(), Gated()]), nn.Linear(3, 3))
    rate = rates(model, td.layerwise_lr_groups(model, 1.0, 0.5))
    assert rate["0.1.matrix.weight"] == 0.5
    assert rate["0.1.gate.0.weight"] == 2.0
    assert rate["0.0.gate.0.weight"] == 1.0
