"""Rates that a model's own code reads: eager code runs as written, compiled code once for every rate."""

import copy
import io

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

import transformer_dropout as td
from transformer_dropout.audit.tiny_models import tiny_inputs, tiny_model
from transformer_dropout.surgery._attention import scaled_dot_product
from transformer_dropout.surgery._own_rates import MARK, MarkedDropouts, Read

WIDTH, HEADS, TOKENS = 16, 4, 5
MOVING = td.Recipe([td.Rule("attention_weights", td.Dropout, p=td.Linear(0.0, 0.9))])


class Attention(nn.Module):
    """Hand-written attention, whose second dropout has a rate of its own."""

    def __init__(self, fused):
        super().__init__()
        self.fused = fused
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.attn_drop = nn.Dropout(0.2)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x):
        query, key, value = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        if self.fused:
            p = self.attn_drop.p if self.training else 0.0
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=p)
        else:
            scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            mixed = self.attn_drop(scores.masked_fill(hidden, float("-inf")).softmax(-1)) @ value
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.attn = Attention(fused)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x):
        x = x + self.attn(x)
        return x + self.mlp(x)


def torch_encoder():
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def x(tokens=TOKENS, batch=2, seed=1):
    return torch.randn(batch, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


MODELS = {
    "fused": lambda: nn.Sequential(Block(True), Block(True)),
    "written out": lambda: nn.Sequential(Block(False), Block(False)),
    "torch": torch_encoder,
    "mpt": lambda: tiny_model("mpt"),
}
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def by_hand(name, blocks=2):
    """Return sites of rates where a run would show modules that can be replaced; else None."""
    where = {"kind": "attention_weights", "access": "rate", "n_blocks": blocks}
    sites = [
        td.Site(path=f"{block}.attn", rate=f"{block}.attn.attn_drop.p", block=block, **where)
        for block in range(blocks)
    ]
    return sites if name == "written out" else None


def built(name, recipe=MOVING):
    torch.manual_seed(0)
    model = MODELS[name]()
    return model, td.regularize_(model.train(), recipe, sites=by_hand(name))


def run(model, name, seed=2):
    torch.manual_seed(seed)
    with torch.no_grad():
        if name == "mpt":
            return model(**tiny_inputs(MODELS["mpt"]())).logits
        return model(x())


def moved(model, handle, compiled, name):
    """Return the outputs at five rates from 0 to 0.9."""
    outputs = []
    for progress in (0.0, 0.25, 0.5, 0.75, 1.0):
        handle.set_progress(progress)
        outputs.append(run(compiled, name))
    return outputs


@EVERY_MODEL
def test_a_moving_rate_compiles_once_and_acts(name):
    model, handle = built(name)
    expected = run(model, name)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        outputs = moved(model, handle, compiled, name)
    assert counter.frame_count == 1
    torch.testing.assert_close(outputs[0], expected)
    assert all((output - expected).abs().mean() > 1e-3 for output in outputs[1:])


@EVERY_MODEL
def test_in_evaluation_a_compiled_model_drops_nothing_and_compiles_once(name):
    model, handle = built(name)
    handle.set_progress(0.0)
    expected = run(model.eval(), name)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for output in moved(model, handle, compiled, name):
            torch.testing.assert_close(output, expected)


@EVERY_MODEL
def test_eager_code_is_the_models_own_before_and_after_a_compiled_forward(name):
    model, handle = built(name)
    twin, other = built(name)
    other.remove()
    handle.set_progress(0.5)
    for path, module in twin.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.45
        if path.endswith("attn_drop"):
            module.p = 0.45
        if hasattr(module, "attn_dropout_p"):
            module.attn_dropout_p = 0.45
    expected = run(twin, name)
    assert torch.equal(run(model, name), expected)
    run(torch.compile(model, backend="eager"), name)
    assert torch.equal(run(model, name), expected)
    assert torch.equal(run(copy.deepcopy(model), name), expected)


@EVERY_MODEL
def test_copies_and_saved_models_keep_a_rate_of_their_own(name):
    model, handle = built(name)
    handle.set_progress(0.5)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    expected = run(model, name)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        handle.set_progress(1.0)
        assert torch.equal(run(twin, name), expected)
        inside = set(map(id, twin.modules()))
        reads = [r for m in twin.modules() if "forward" in vars(m) for r in m.forward.args[1]]
        assert len(reads) == len(handle.placed)
        assert all({id(read.reader), id(read.owner)} <= inside for read in reads)


@EVERY_MODEL
def test_removal_leaves_nothing(name):
    torch.manual_seed(0)
    model = MODELS[name]().train()
    before, output = attributes(model), run(model, name)
    handle = td.regularize_(model, MOVING, sites=by_hand(name))
    handle.set_progress(0.5)
    assert list(model.state_dict()) == list(MODELS[name]().state_dict())
    assert attributes(model) != before
    handle.remove()
    assert attributes(model) == before
    assert torch.equal(run(model, name), output)


def attributes(model):
    """Return what the modules of a model hold, their buffers by name."""
    plain = [{key: value for key, value in vars(m).items() if key[0] != "_"} for m in model.modules()]
    return plain, [name for name, _ in model.named_buffers()]


@EVERY_MODEL
def test_regularizing_twice_is_an_error(name):
    model, _ = built(name)
    with pytest.raises(td.InputError, match=r"regularized already; call remove\(\)"):
        td.regularize_(model, MOVING, sites=by_hand(name))


@pytest.mark.parametrize("name", ["fused", "written out", "torch"])
def test_the_share_that_was_set_is_dropped(name):
    model, _ = built(name, td.Recipe([td.Rule("attention_weights", td.Dropout, p=td.Linear(0.0, 1.0))]))
    attention = model[0].attn if name != "torch" else model.layers[0].self_attn
    (buffer,) = [tensor for tensor_name, tensor in attention.named_buffers() if "rate" in tensor_name]
    bias = attention.proj.bias if name != "torch" else attention.out_proj.bias

    def first(inputs):
        if name == "torch":
            return attention(inputs, inputs, inputs, need_weights=False)[0]
        return attention(inputs)

    compiled = torch.compile(first, backend="eager", dynamic=True)
    for p in (0.0, 0.3, 0.8, 1.0):
        buffer.fill_(p)
        # A single token has one weight, so that a dropped one leaves the bias of the projection alone.
        output = compiled(x(tokens=1, batch=4000))
        whole = (output - bias).abs().amax(-1) < 1e-6
        # All heads must be dropped; their weights are drawn independently.
        assert abs(whole.float().mean() - p**HEADS) < 0.04  # over five standard errors


def test_a_dropout_with_another_rate_is_left_alone():
    model, _ = built("fused")
    expected = run(model, "fused")
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(run(compiled, "fused"), expected)
    for block in model:
        block.attn.proj_drop.p = 1.0
    output = run(compiled, "fused")
    torch.testing.assert_close(output, model[1].mlp(y := x() + model[0].mlp(x())) + y)


class OwnMask(Attention):
    """Attention that draws its mask itself."""

    def forward(self, x):
        value = self.proj(x)
        return value * (torch.rand_like(value) > self.attn_drop.p)


def test_a_rate_that_another_function_reads_leaves_its_module_to_eager_code():
    torch.manual_seed(0)
    model = nn.Sequential(Block(True))
    model[0].attn = OwnMask(True)
    handle = td.regularize_(model, MOVING, sites=by_hand("written out", blocks=1))
    handle.set_progress(1.0)
    with pytest.raises(Exception, match=r"Dropout.p is given to .*torch\.compile would compile anew"):
        torch.compile(model, backend="eager", fullgraph=True)(x())
    output = torch.compile(model[0].attn, backend="eager")(x(tokens=500))
    assert abs((output == 0).float().mean() - 0.9) < 0.02  # over eight standard errors


MASKS = {
    "none": {},
    "causal": {"attn_mask": torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)},
    "numbers": {"attn_mask": torch.linspace(-1, 1, TOKENS * TOKENS).view(TOKENS, TOKENS)},
    "each head": {"attn_mask": torch.linspace(-1, 1, 2 * HEADS * TOKENS**2).view(-1, TOKENS, TOKENS)},
    "padding": {"key_padding_mask": torch.arange(TOKENS) >= torch.tensor([[TOKENS], [3]])},
    "both": {
        "attn_mask": torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1),
        "key_padding_mask": torch.arange(TOKENS) >= torch.tensor([[TOKENS], [3]]),
    },
    "heads shown": {"average_attn_weights": False},
    "no weights": {"need_weights": False},
    "hint": {
        "attn_mask": torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1),
        "is_causal": True,
        "need_weights": False,
    },
}
KINDS_OF_ATTENTION = {
    "plain": {},
    "without bias": {"bias": False},
    "extra tokens": {"add_bias_kv": True, "add_zero_attn": True},
    "other widths": {"kdim": 6, "vdim": 10},
    "tokens first": {"batch_first": False},
}


CASES = [*(("plain", masks) for masks in MASKS), *((kind, "both") for kind in KINDS_OF_ATTENTION)]


@pytest.mark.parametrize(("kind", "masks"), CASES)
def test_the_written_out_attention_is_torchs_own(kind, masks):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(WIDTH, HEADS, **({"batch_first": True} | KINDS_OF_ATTENTION[kind]))
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.3)
    inputs = [torch.randn(2, TOKENS, width) for width in (WIDTH, attention.kdim, attention.vdim)]
    if not attention.batch_first:
        inputs = [part.transpose(0, 1) for part in inputs]
    assert_as_torch(attention, MASKS[masks], inputs)


def assert_as_torch(attention, options, inputs):
    """Compare outputs and weights with torch's own, at rate 0."""
    attention.train()
    expected = attention(*inputs, **options)
    attention.register_buffer("rate", torch.zeros(()))
    read = Read(reader=attention, owner=attention, name="dropout", buffer="rate", mark=MARK)
    attention.dropout = MARK
    with MarkedDropouts([read]):
        found = attention(*inputs, **options)
    torch.testing.assert_close(found, expected)
    attention.rate.fill_(1.0)
    with MarkedDropouts([read]):
        dropped = attention(*inputs, **options)[0]
    bias = torch.zeros(WIDTH) if attention.out_proj.bias is None else attention.out_proj.bias
    torch.testing.assert_close(dropped, bias.expand_as(dropped))


def test_without_a_batch_too():
    torch.manual_seed(0)
    assert_as_torch(nn.MultiheadAttention(WIDTH, HEADS), {}, [torch.randn(TOKENS, WIDTH)] * 3)


@pytest.mark.parametrize("masked", ["", "causal", "bool", "numbers"])
def test_the_written_out_fused_attention_is_torchs_own(masked):
    torch.manual_seed(0)
    attention = Attention(True)
    attention.register_buffer("rate", torch.zeros(()))
    read = Read(reader=attention, owner=attention, name="p", buffer="rate", mark=MARK)
    query, (key, value) = torch.randn(2, HEADS, TOKENS, 4), torch.randn(2, 2, 2, TOKENS, 4)
    options = {"scale": 0.7, "enable_gqa": True}
    if masked == "causal":
        options["is_causal"] = True
    elif masked:
        mask = torch.randn(2, 1, TOKENS, TOKENS)
        options["attn_mask"] = (
            mask if masked == "numbers" else (mask > 0) | torch.eye(TOKENS, dtype=torch.bool)
        )
    expected = F.scaled_dot_product_attention(query, key, value, **options)
    for mode in (True, False):
        attention.train(mode)
        # In evaluation no rate acts.
        attention.rate.fill_(0.0 if mode else 1.0)
        with MarkedDropouts([read]):
            found = F.scaled_dot_product_attention(query, key, value, dropout_p=MARK, **options)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["torch", "mpt"])
def test_a_model_is_exported_in_evaluation(name):
    model, handle = built(name)
    handle.set_progress(1.0)
    expected = run(model.eval(), name)
    arguments, keywords = ((x(),), {}) if name == "torch" else ((), tiny_inputs(model))
    program = torch.export.export(model, arguments, keywords)
    assert torch.allclose(run(program.module(), name), expected, atol=1e-6)


class AttentionWithP(nn.Module):
    """Attention that holds its rate as ``p``, as a dropout does."""

    def __init__(self):
        super().__init__()
        self.p, self.out = 0.2, nn.Linear(4, 4)

    def forward(self, x):
        p = self.p if self.training else 0.0
        return x + self.out(F.scaled_dot_product_attention(x, x, x, dropout_p=p))


class ListOfThem(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([AttentionWithP(), AttentionWithP()])

    def forward(self, x):
        return self.blocks[1](self.blocks[0](x))


def test_a_module_that_holds_its_rate_as_p_reads_it_itself():
    model = ListOfThem()
    handle = td.set_rates(model, {"attention_weights": 0.3})
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled, x = torch.compile(model, backend=counter), torch.ones(1, 1, 5, 4)
    compiled(x)
    for rate in (0.1, 0.2, 0.4, 0.0):
        handle.update({"attention_weights": rate})
        compiled(x)
    assert counter.frame_count == 1


def test_attention_written_out_is_the_kernels():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 4, 6, 8)
    bias, seen = torch.randn(6, 6), torch.rand(6, 6) > 0.3
    seen[:, 0] = True
    for options in ({}, {"is_causal": True}, {"attn_mask": bias}, {"attn_mask": seen, "scale": 0.3}):
        found = scaled_dot_product(nn.Identity(), query, key, value, **options)
        torch.testing.assert_close(found, F.scaled_dot_product_attention(query, key, value, **options))
    found = scaled_dot_product(nn.Identity(), query, key[:, :2], value[:, :2], enable_gqa=True)
    other = F.scaled_dot_product_attention(query, key[:, :2], value[:, :2], enable_gqa=True)
    torch.testing.assert_close(found, other)
