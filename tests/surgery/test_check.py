"""Places that prove what they are called, and some that are not."""

import dataclasses

import pytest
import torch
from torch import nn

import transformer_dropout as td
from transformer_dropout.audit.tiny_models import tiny_inputs, tiny_model

P = 0.2


@pytest.fixture
def bert():
    return tiny_model("bert")


def test_every_place_of_a_model_is_what_it_is_called(bert):
    checks = td.check_sites(bert, tiny_inputs(bert))
    assert len(checks) == len(td.find_sites(bert))
    assert [check.problem for check in checks if not check.right] == []


def test_the_inputs_that_are_given_are_run(unguessable):
    checks = td.check_sites(*unguessable)
    assert len(checks) == 4 and all(check.right for check in checks), checks


def changed(model, kind, **facts):
    """Return the first site of a kind, with other facts."""
    return dataclasses.replace(next(s for s in td.find_sites(model) if s.kind == kind), **facts)


def problem(model, site):
    (check,) = td.check_sites(model, tiny_inputs(model), sites=[site])
    return check.problem or ""


def test_a_place_that_does_not_run_is_told(bert):
    bert.unused = nn.Linear(2, 2)
    site = td.Site(path="unused", kind="mlp_output", access="output", width=2)
    assert "did not run" in problem(bert, site)


def test_a_wrong_width_is_told(bert):
    assert "is said to be 7 wide" in problem(bert, changed(bert, "mlp_output", width=7))


def test_a_rate_that_nothing_reads_is_told(bert):
    bert.bert.ignored_drop = 0.1
    site = td.Site(path="bert", kind="embedding", access="rate", rate="bert.ignored_drop")
    assert "changes nothing in training" in problem(bert, site)


def test_a_place_of_another_kind_is_told(bert):
    site = dataclasses.replace(changed(bert, "mlp_output"), kind="embedding")
    assert "still depends on the tokens" in problem(bert, site)


def test_a_recipe_is_placed_only_where_its_places_are_right(bert):
    inputs, recipe = tiny_inputs(bert), td.Recipe([td.Rule("mlp_output", td.Dropout, p=P)])
    handle = td.regularize_(bert, recipe, inputs=inputs)
    assert len(handle.placed) == 2
    handle.remove()
    wrong = [changed(bert, "mlp_output", width=7)]
    with pytest.raises(td.InputError, match="is said to be 7 wide"):
        td.regularize_(bert, recipe, sites=wrong, inputs=inputs)
    assert not any(isinstance(module, td.Dropout) for module in bert.modules())


def test_what_the_model_itself_still_drops_is_in_the_report(bert):
    report = td.set_rates(bert, {"mlp_output": P}).report()
    assert "beside the recipe: bert.embeddings.dropout  embedding  0.1" in report


def test_a_check_leaves_no_trace(bert):
    keys, state = list(bert.state_dict()), torch.get_rng_state()
    td.check_sites(bert, tiny_inputs(bert))
    assert list(bert.state_dict()) == keys
    assert torch.equal(torch.get_rng_state(), state)
    assert not bert.training


# Each was once said to have places that it has not, for a reason of its own.
ONCE_WRONG = {
    "what the model returns beside its output": ("aimv2_vision_model", "patchtst"),
    "a rate that all blocks read from one config": ("data2vec-vision", "bigbird_pegasus"),
    "parts that a first forward exchanges": ("big_bird",),
    "weights that begin next to zero": ("blip",),
    "several streams, which a matrix mixes": ("deepseek_v4",),
    "short convolutions with a sum of their own inside a branch": ("inkling_text", "inkling_mm_model"),
    "batch norm, which mixes tokens in training, before an MLP": ("patchtsmixer",),
    "attention over the depth and not over the tokens": ("inkling2_text",),
    "attention that is eager, without a mask": ("splinter",),
    "noise that chooses the tokens that go on": ("vit_mae",),
    "a decoder that goes on behind the end of an encoder": ("t5gemma",),
    "a pooling that the head has no use for": ("siglip",),
    "a router that returns the order of tokens": ("jetmoe",),
    "values with other heads than keys": ("nemotron3_diarization_audio",),
    "blocks that return a list": ("openai-gpt",),
    "an infinite number among the arguments": ("phimoe",),
    "the model's own noise beside a rate": (pytest.param("groupvit", marks=pytest.mark.slow),),
    "attention that is a constant on a CPU": ("mra",),
    "a block whose result is captured by a hook": ("rf_detr",),
    "positions that are dropped before the blocks and used inside": ("parakeet_tdt",),
}


@pytest.mark.parametrize("name", [name for names in ONCE_WRONG.values() for name in names])
def test_what_was_once_wrong_is_right(name):
    model = tiny_model(name)
    checks = td.check_sites(model, tiny_inputs(model))
    assert checks
    assert [check.problem for check in checks if check.problem] == []


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("deepseek_v4", {"embedding", "attention_weights", "attention_output", "mlp_output", "block"}),
        ("inkling_text", {"embedding", "attention_weights", "attention_output", "mlp_output", "block"}),
    ],
)
def test_unusual_blocks_have_the_usual_places(name, kinds):
    model = tiny_model(name)
    sites = td.find_sites(model, tiny_inputs(model))
    assert kinds <= {site.kind for site in sites}
    assert {site.path for site in sites if site.kind == "block"} == {"model.layers.0", "model.layers.1"}


def test_blocks_whose_every_matrix_is_reached_have_no_notes():
    for name in ("bert", "patchtst", "qwen2_moe"):
        model = tiny_model(name)
        assert not any(check.note for check in td.check_sites(model, tiny_inputs(model)))


def test_a_branch_that_no_place_has_is_told_of_at_the_block():
    model = tiny_model("mamba")
    notes = {check.site.name: check.note for check in td.check_sites(model, tiny_inputs(model)) if check.note}
    assert notes["backbone.layers.0/block"] == (
        "What backbone.layers.0.mixer does no place in the block reaches."
    )


def test_a_bottleneck_around_attention_and_mlps_is_neither():
    model = tiny_model("mobilebert")
    found = {site.path: site.kind for site in td.find_sites(model, tiny_inputs(model))}
    first = "mobilebert.encoder.layer.0"
    assert found[f"{first}.attention.self"] == "attention_weights"
    assert found[f"{first}.attention.output.dense"] == "attention_output"
    assert found[f"{first}.output.bottleneck.dropout"] == "mlp_output"


def test_noise_that_no_kind_reaches_is_listed_wherever_it_acts():
    model = tiny_model("vit_mae")
    others = [site.path for site in td.find_sites(model, tiny_inputs(model)) if site.kind == "other"]
    assert others == ["embeddings"]


def test_a_dropout_of_a_constant_is_no_mlp():
    model = tiny_model("mra")
    kinds = {site.path: site.kind for site in td.find_sites(model, tiny_inputs(model))}
    assert kinds["mra.encoder.layer.0.attention.output.dropout"] == "other"


class Attending(nn.Module):
    """A block of attention, beside which something else may mix tokens."""

    def __init__(self, convolves: bool) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)
        self.short = nn.Conv1d(16, 16, 3, padding=1) if convolves else None

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out((q @ k.transpose(1, 2) / 4).softmax(-1) @ v)
        if self.short is not None:
            x = x + self.short(x.transpose(1, 2)).transpose(1, 2)
        return x + self.fc2(torch.relu(self.fc1(x)))


@pytest.mark.parametrize("convolves", [False, True])
def test_another_way_from_token_to_token_is_named(convolves):
    model = nn.Sequential(*(Attending(convolves) for _ in range(2)))
    checks = td.check_sites(model, (torch.randn(2, 6, 16),))
    assert [check.problem for check in checks if check.problem] == []
    notes = [check.note for check in checks if check.site.kind == "attention_output"]
    told = [f"Tokens of {block} also influence each other in {block}.short." for block in "01"]
    assert notes == (told if convolves else [None, None])


def test_an_attention_that_is_left_out_is_noticed():
    model = nn.Sequential(*(Attending(False) for _ in range(2)))
    x = (torch.randn(2, 6, 16),)
    sites = [s for s in td.find_sites(model, x) if s.name != "0.out/attention_output"]
    moved = [dataclasses.replace(s, path="0.fc2", width=16) for s in td.find_sites(model, x)[:1]]
    wrong = [*sites, *(dataclasses.replace(site, kind="attention_output", access="output") for site in moved)]
    notes = {check.site.name: check.note for check in td.check_sites(model, x, sites=wrong) if check.note}
    assert notes == {
        "0.fc2/attention_output": "Tokens of 0 also influence each other in 0.",
        "0/block": "What 0.qkv does no place in the block reaches.",
    }


def test_a_place_behind_weights_of_zero_is_right():
    model = nn.Sequential(*(Attending(False) for _ in range(2)))
    for block in model:
        nn.init.zeros_(block.fc2.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    checks = td.check_sites(model, (torch.randn(2, 6, 16),))
    assert [check.problem for check in checks if check.problem] == []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
