"""Plain MLPs: where a LearnedBlockDropout computes the two products itself, and where it cannot."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import transformer_dropout as td
from transformer_dropout.audit.tiny_models import tiny_model
from transformer_dropout.kernels.linear import is_fast_forward, linear
from transformer_dropout.layers import LearnedBlockDropout, block_dropout
from transformer_dropout.surgery._mlp import is_detour, product_of, sizes
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig
from transformer_dropout.tasks.language.generate import generate

VOCABULARY, CONTEXT = 19, 12
RECIPE = td.Recipe([td.Rule("mlp_hidden", LearnedBlockDropout, block=8, rank=4, weight=0.1)])


def decoder(bias=False):
    torch.manual_seed(0)
    return Decoder(VOCABULARY, DecoderConfig(width=16, heads=2, blocks=2, context=CONTEXT, bias=bias))


def tokens():
    return torch.randint(VOCABULARY, (3, CONTEXT), generator=torch.Generator().manual_seed(1))


def regularized(model, recipe=RECIPE):
    """Place the layers and make their masks differ from token to token."""
    handle = td.regularize_(model, recipe)
    torch.manual_seed(2)
    for placed in handle.placed:
        if isinstance(placed.layer, LearnedBlockDropout):
            for weight in (placed.layer.down, placed.layer.up):
                nn.init.normal_(weight, std=1.0)
    return handle


@pytest.fixture(autouse=True)
def always_skip(monkeypatch):
    """Skip whatever can be skipped; tiny blocks would not pay."""
    monkeypatch.setattr(block_dropout, "pays", lambda *arguments: True)


def in_both_ways(monkeypatch, run):
    """Run with dropped blocks skipped and with everything computed and masked."""
    torch.manual_seed(3)
    skipped = run()
    with monkeypatch.context() as patch:
        patch.setattr(block_dropout, "can_group", lambda *tensors: False)
        torch.manual_seed(3)
        return skipped, run()


def shares(handle):
    return [placed.layer.computed for placed in handle.placed]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("fast", [False, True])
def test_the_decoder_trains_alike_whether_blocks_are_skipped_or_masked(monkeypatch, bias, fast):
    model = decoder(bias)
    handle = regularized(model)
    if fast:
        td.speed_up_(model)

    def run():
        (model(tokens(), tokens()) + handle.penalty()).backward()
        found = {name: parameter.grad for name, parameter in model.named_parameters()}
        model.zero_grad()
        return found

    skipped, masked = in_both_ways(monkeypatch, run)
    assert all(0 < share < 1 for share in shares(handle))
    for name, gradient in masked.items():
        torch.testing.assert_close(skipped[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_removing_gives_the_model_back():
    model = decoder()
    plain, before = model(tokens()), copy.deepcopy(model.state_dict())
    handle = regularized(model)
    assert before.keys() <= model.state_dict().keys()
    assert not torch.equal(model(tokens()), plain)
    handle.remove()
    assert torch.equal(model(tokens()), plain)
    assert model.state_dict().keys() == before.keys()
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("pickled", [False, True])
def test_a_copy_runs_its_own_layers(pickled):
    model = decoder()
    regularized(model).model.eval()
    expected = model(tokens())
    twin = copy.deepcopy(model)
    if pickled:
        torch.save(model, buffer := io.BytesIO())
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    assert torch.equal(twin(tokens()), expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(model(tokens()), expected)
    assert not twin(tokens()).any()


def test_the_report_says_what_is_skipped_and_what_only_masked():
    gpt2, llama = (tiny_model(family) for family in ("gpt2", "llama"))
    recipe = td.Recipe([td.Rule("mlp_hidden", LearnedBlockDropout, block=8, rank=4)])
    lines = [line for line in td.regularize_(gpt2, recipe).report().splitlines() if "mlp_hidden" in line]
    assert len(lines) == 2
    assert all(line.endswith("dropped blocks: skipped)") for line in lines)
    lines = [line for line in td.regularize_(llama, recipe).report().splitlines() if "mlp_hidden" in line]
    assert all(line.endswith("dropped blocks: masked, not skipped)") for line in lines)


PLAIN = (
    "gpt2 gptj gpt_neox opt phi starcoder2 nemotron mpt "
    "bert roberta electra deberta-v2 distilbert albert bart"
)
OTHER = "llama mistral gemma modernbert bloom t5"


@pytest.mark.parametrize("family", PLAIN.split())
def test_plain_mlps_of_a_family_compute_the_same_with_blocks_skipped(monkeypatch, family):
    model = tiny_model(family)
    handle = regularized(model)
    assert all(placed.layer.in_plain_mlp for placed in handle.placed)
    assert all(placed.layer.inputs == 32 for placed in handle.placed)
    words = torch.randint(3, 60, (2, 6), generator=torch.Generator().manual_seed(1))
    model.train()
    skipped, masked = in_both_ways(monkeypatch, lambda: model(input_ids=words).logits)
    torch.testing.assert_close(skipped, masked, rtol=1e-4, atol=1e-5)
    assert all(0 < share < 1 for share in shares(handle))
    handle.remove()


@pytest.mark.parametrize("family", OTHER.split())
def test_other_mlps_are_masked_only(family):
    handle = regularized(tiny_model(family))
    handle.model.train()
    words = torch.arange(3, 9)[None]
    handle.model(input_ids=words, **({"decoder_input_ids": words} if family == "t5" else {}))
    assert not any(placed.layer.in_plain_mlp for placed in handle.placed)
    assert shares(handle) == [None] * len(handle.placed)


@pytest.mark.parametrize("activation", ["relu", nn.GELU()])
def test_torchs_encoder_layer_takes_no_way_around_the_layer(monkeypatch, activation):
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.3, activation=activation, batch_first=True)
    model = nn.TransformerEncoder(block, 2)
    handle = regularized(model)
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        model.eval()
        skipped, masked = in_both_ways(monkeypatch, lambda: model(x))
        torch.testing.assert_close(skipped, masked)
        assert all(0 < share < 1 for share in shares(handle))
        handle.remove()
        assert not torch.allclose(model(x), masked)


def test_torchs_decoder_layer_computes_the_same_with_blocks_skipped(monkeypatch):
    torch.manual_seed(0)
    model = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 32, batch_first=True), 2)
    handle = regularized(model)
    model.eval()
    x, memory = torch.randn(2, 5, 16), torch.randn(2, 4, 16)
    skipped, masked = in_both_ways(monkeypatch, lambda: model(x, memory))
    torch.testing.assert_close(skipped, masked)
    assert all(0 < share < 1 for share in shares(handle))


def test_a_linear_layer_that_was_changed_is_left_alone():
    model = decoder()
    model.blocks[0].mlp.expand = nn.utils.parametrizations.weight_norm(model.blocks[0].mlp.expand)
    model.blocks[1].mlp.projection.forward = lambda hidden: hidden[..., :16]
    handle = regularized(model)
    assert [placed.layer.in_plain_mlp for placed in handle.placed] == [False, False]
    model(tokens())


def test_a_compiled_mlp_is_masked_in_one_graph():
    model = decoder()
    handle = regularized(model)
    mlp, x = model.blocks[0].mlp.eval(), torch.randn(2, 5, 16)
    expected = mlp(x)
    handle.placed[0].layer.computed = None
    torch._dynamo.reset()
    compiled = torch.compile(mlp, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    assert handle.placed[0].layer.computed is None
    torch._dynamo.reset()


def test_decoding_skips_and_gives_the_same_tokens():
    model = decoder()
    handle = regularized(model)
    model.eval()
    texts = {
        cache: list(generate(model, [3, 1, 4], 8, temperature=0.0, cache=cache)) for cache in (True, False)
    }
    assert texts[True] == texts[False]
    assert len(set(texts[True])) > 1
    assert all(share < 1 for share in shares(handle))


def test_progress_reaches_the_layer():
    model = decoder()
    rule = td.Rule("mlp_hidden", LearnedBlockDropout, block=8, skip_from=0.5)
    handle = td.regularize_(model, td.Recipe([rule]))
    skipping = []
    for progress in (0.0, 0.4, 0.6):
        handle.set_progress(progress)
        skipping.append([placed.layer.skipping for placed in handle.placed])
    assert skipping == [[False] * 2, [False] * 2, [True] * 2]


def test_it_can_be_saved_loaded_audited_and_disabled(tmp_path):
    model = tiny_model("gpt2")
    handle = regularized(model)
    words = torch.arange(3, 9)[None]
    expected = model.eval()(input_ids=words).logits
    td.save_regularized(tmp_path, handle)
    again = tiny_model("gpt2")
    td.load_regularized(tmp_path, again)
    torch.testing.assert_close(again.eval()(input_ids=words).logits, expected)
    with td.disabled(model.train(), {"input_ids": words}):
        torch.testing.assert_close(model(input_ids=words).logits, expected)
    events = td.audit(model, {"input_ids": words}).events
    assert {event.path for event in events if event.kind == "mlp_hidden"} == {
        f"transformer.h.{block}.mlp.c_proj.mlp_hidden_dropout" for block in range(2)
    }


def test_one_token_under_autocast_is_computed_as_masked(monkeypatch):
    model = decoder().eval()
    handle = regularized(model)
    outputs = []
    model.blocks[0].mlp.register_forward_hook(lambda module, arguments, output: outputs.append(output))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        in_both_ways(monkeypatch, lambda: model(tokens()[:1, :1]))
    skipped, masked = outputs
    assert skipped.dtype == masked.dtype == torch.bfloat16
    torch.testing.assert_close(skipped, masked, rtol=2e-2, atol=2e-2)
    assert all(share < 1 for share in shares(handle))


def test_a_product_is_multiplied_as_its_layer_is():
    layer = nn.Linear(4, 6)
    plain = product_of(layer)
    assert plain.weight is layer.weight and plain.bias is layer.bias and plain.multiply is F.linear
    td.speed_up_(nn.Sequential(layer))
    assert product_of(layer).multiply is linear
    assert sizes(layer) == (4, 6)
    layer.forward = lambda x: x
    assert sizes(layer) is None and sizes(nn.GELU()) is None


@pytest.mark.parametrize("first", ["faster", "regularized"])
@pytest.mark.parametrize("last", ["faster", "regularized"])
def test_either_change_ends_before_the_other(first, last):
    model = decoder()
    plain = model(tokens())
    handles = {}
    for name in (first, "regularized" if first == "faster" else "faster"):
        handles[name] = td.speed_up_(model) if name == "faster" else regularized(model)
    changed = vars(model.blocks[0].mlp.projection)["forward"]
    assert is_detour(changed)
    handles.pop("regularized" if last == "faster" else "faster").remove()
    left = [vars(module).get("forward") for module in model.modules() if isinstance(module, nn.Linear)]
    if last == "faster":
        assert all(is_fast_forward(forward) for forward in left)
    else:
        assert not any(is_fast_forward(forward) for forward in left)
        assert product_of(model.blocks[0].mlp.expand).multiply is F.linear
    handles.popitem()[1].remove()
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(model(tokens()), plain)


def test_a_forward_of_the_users_own_comes_back():
    model = decoder()
    activation = model.blocks[0].mlp.activation
    own = activation.forward = lambda x: x.relu()
    regularized(model).remove()
    assert vars(activation)["forward"] is own
