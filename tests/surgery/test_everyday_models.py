"""Models as people have them: two dimensions, shared parts, on meta, quantised, compiled, wrapped."""

import inspect

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import transformer_dropout as td
from transformer_dropout import layers
from transformer_dropout.audit.tiny_models import tiny_inputs, tiny_model
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

PLACE = [td.Site(path="1", kind="mlp_output", access="output", width=8)]
TOKENS = torch.arange(6)[None]
ARGUMENTS = {"heads": 2, "std": 0.5, "block": 2, "rank": 2}


def two_linears():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))


def decoder():
    torch.manual_seed(0)
    return Decoder(19, DecoderConfig(width=8, heads=2, blocks=2, context=6))


def varies(run):
    outputs = [run() for _ in range(6)]
    return any(not torch.equal(outputs[0], output) for output in outputs)


def rule_for(kind):
    parameters = inspect.signature(kind).parameters
    required = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    needed = {name: ARGUMENTS[name] for name in required if name in ARGUMENTS}
    needed |= {"block": 2} if "block" in parameters else {}
    rate = {"p": 0.5} if issubclass(kind, layers.RateLayer) else {}
    return td.Rule("mlp_output", kind, **rate, **needed)


@pytest.mark.parametrize("name", layers.__all__)
def test_every_layer_takes_samples_without_tokens_or_says_why_not(name):
    model, x = two_linears(), torch.randn(5, 8)
    try:
        td.regularize_(model, td.Recipe([rule_for(getattr(layers, name))]), sites=PLACE)
        output = model(x)
    except td.InputError as error:
        assert name in str(error)
        return
    assert output.shape == x.shape and output.isfinite().all()
    output.sum().backward()
    if getattr(layers, name).silent_in_evaluation:
        torch.testing.assert_close(model.eval()(x), two_linears()(x))


class Block(nn.Module):
    def __init__(self, drop):
        super().__init__()
        self.norm, self.act = nn.LayerNorm(8), nn.GELU()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.drop = drop

    def forward(self, x):
        return x + self.drop(self.down(self.act(self.up(self.norm(x)))))


def test_a_dropout_that_blocks_share_is_replaced_in_all_of_them_and_put_back():
    drop = nn.Dropout(0.5)
    model, x = nn.Sequential(Block(drop), Block(drop), Block(drop)), torch.randn(2, 3, 8)
    shared = [td.Site(path="0.drop", kind="mlp_output", access="module", width=8)]
    handle = td.regularize_(model, td.Recipe([td.Rule("mlp_output", td.Dropout, p=0.0)]), sites=shared)
    assert torch.equal(model(x), model(x))
    assert len({id(block.drop) for block in model}) == 1
    model.eval()
    handle.remove()
    assert all(block.drop is drop for block in model) and not drop.training


def test_a_layer_in_a_shared_block_acts_each_time_the_block_runs():
    block = Block(nn.Identity())
    model, x = nn.Sequential(block, block, block), torch.randn(2, 3, 8)
    site = [td.Site(path="0.down", kind="mlp_output", access="output", width=8)]
    handle = td.regularize_(model, td.Recipe([td.Rule("mlp_output", td.Dropout, p=1.0)]), sites=site)
    assert torch.equal(model(x), x)
    handle.remove()
    assert not torch.equal(model(x), x)


def test_a_model_on_meta_is_regularized_filled_and_loaded():
    recipe = td.Recipe(
        [
            td.Rule("mlp_output", td.LearnedDropout, heads=2, shift=1.2),
            td.Rule("attention_output", td.ImportanceDropout, p=0.3),
            td.Rule("embedding", td.Dropout, p=0.4),
        ]
    )
    filled, empty, tokens = decoder(), decoder().to("meta"), torch.arange(12).view(2, 6)
    td.regularize_(filled, recipe)
    handle = td.regularize_(empty, recipe)
    empty.to_empty(device="cpu").load_state_dict(filled.state_dict())
    rates = [(p.layer.p, p.layer.rate.item()) for p in handle.placed if isinstance(p.layer, layers.RateLayer)]
    assert all(rate == pytest.approx(p) for p, rate in rates) and len(rates) == 3
    torch.manual_seed(3)
    expected = filled(tokens)
    torch.manual_seed(3)
    assert torch.equal(empty(tokens), expected)


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.filterwarnings("ignore:quantized.*an autograd kernel was not registered:UserWarning")
@pytest.mark.parametrize("kind", ["mlp_output", "mlp_hidden", "attention_output", "embedding"])
def test_a_dynamically_quantised_model_takes_layers(kind):
    model = tiny_model("llama").eval()
    inputs = tiny_inputs(model)
    places = [(site.path, site.kind, site.access, site.width) for site in td.find_sites(model)]
    model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        before = model(**inputs).logits
        sites = td.find_sites(model)
        assert [(site.path, site.kind, site.access, site.width) for site in sites] == places
        recipe = td.Recipe([td.Rule(kind, td.LearnedDropout, heads=4, shift=1.2)])
        handle = td.regularize_(model, recipe, sites=sites)
        assert varies(lambda: model.train()(**inputs).logits)
        handle.remove()
        assert torch.equal(model.eval()(**inputs).logits, before)


class Packed(nn.Linear):
    """Keeps its weight as bytes that stand for two numbers each, as bitsandbytes' layers do."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.numbers, self.bias = [linear.weight.detach().clone()], linear.bias
        packed = torch.zeros(linear.weight.numel() // 2, 1, dtype=torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, x):
        return F.linear(x, self.numbers[0].to(x.dtype), self.bias)


def test_packed_weights_do_not_decide_the_dtype_of_a_layer():
    model = tiny_model("llama").bfloat16()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, Packed(child))
    inputs = tiny_inputs(model)
    handle = td.regularize_(model, td.Recipe([td.Rule("mlp_output", td.LearnedDropout, heads=4, shift=1.2)]))
    assert {p.layer.shift.dtype for p in handle.placed} == {torch.bfloat16}
    assert varies(lambda: model.train()(**inputs).logits)


def test_a_wrapped_model_gets_one_sentence(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(decoder())
        with pytest.raises(td.InputError, match=r"in DistributedDataParallel already.* wrap it after"):
            td.set_rates(wrapped, {"mlp_output": 0.1})
        sharded = fully_shard(decoder(), mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(td.InputError, match=r"is sharded by FSDP already.* shard it after"):
            td.set_rates(sharded, {"mlp_output": 0.1})
        td.set_rates(inner := decoder(), {"mlp_output": 0.1})
        shared = nn.parallel.DistributedDataParallel(inner)
        assert varies(lambda: shared(TOKENS))
        # An audit in the middle of a training leaves nothing that the next step would wait for.
        assert [event.kind for event in td.audit(shared, TOKENS).events] == ["mlp_output"] * 2
        shared(TOKENS).sum().backward()
        # Its rates may change, its places not.
        td.set_rates(shared, {"mlp_output": 0.0})
        with pytest.raises(td.InputError, match="in DistributedDataParallel already"):
            td.set_rates(shared, {"embedding": 0.1})
        assert not varies(lambda: shared(TOKENS))
        assert [placed.site.kind for placed in td.handle_of(shared).placed] == ["mlp_output"] * 2
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            lambda: torch.compile(two_linears(), backend="eager"),
            r"already compiled; call td\.regularize_ first",
        ),
        (lambda: nn.DataParallel(two_linears()), "is wrapped in DataParallel already"),
        (lambda: torch.jit.script(two_linears()), "TorchScript module"),
        (lambda: nn.Sequential(nn.LazyLinear(4)), "has no sizes yet; run one forward"),
    ],
    ids=["compiled", "parallel", "scripted", "lazy"],
)
def test_models_that_no_layer_can_be_put_into_get_one_sentence(model, sentence):
    with pytest.raises(td.InputError, match=sentence):
        td.set_rates(model(), {"mlp_output": 0.1})


def test_arguments_the_wrong_way_round_are_named(tmp_path):
    handle = td.set_rates(decoder(), {"mlp_output": 0.1})
    with pytest.raises(td.InputError, match=r"Write td\.save_regularized\(folder, handle\)"):
        td.save_regularized(handle, tmp_path)
    with pytest.raises(td.InputError, match=r"Write td\.load_regularized\(folder, model\)"):
        td.load_regularized(decoder(), tmp_path)


class TwoRates(nn.Module):
    """A module whose own code drops at two rates."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.linear = 0.1, 0.1, nn.Linear(8, 8)

    def forward(self, x):
        once = F.dropout(x, self.first, self.training)
        return once, F.dropout(torch.ones_like(x), self.second, self.training)


def test_two_rates_of_one_compiled_module_stay_apart():
    torch._dynamo.reset()
    model = nn.Sequential(TwoRates())
    sites = [
        td.Site(path="0", kind=kind, access="rate", rate=f"0.{name}", width=8)
        for kind, name in (("mlp_hidden", "first"), ("mlp_output", "second"))
    ]
    rules = [
        td.Rule("mlp_hidden", td.Dropout, p=td.Linear(0.2, 0.6)),
        td.Rule("mlp_output", td.Dropout, p=0.8),
    ]
    handle = td.regularize_(model, td.Recipe(rules), sites=sites)
    run, x = torch.compile(model, backend="eager", fullgraph=True), torch.ones(4000, 8)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for progress, first in ((0.0, 0.2), (1.0, 0.6)):
            handle.set_progress(progress)
            shares = [(output == 0).float().mean().item() for output in run(x)]
            assert shares == pytest.approx([first, 0.8], abs=0.02)
    torch._dynamo.reset()


class Secretive(nn.Module):
    """Blocks behind an argument that nobody can guess, which drop with functions."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.up, self.down, self.p = nn.Linear(8, 16), nn.Linear(16, 8), 0.3

        def forward(self, x):
            x = x + F.dropout(self.attention(x, x, x)[0], self.p, self.training)
            return x + F.dropout(self.down(self.up(x).relu()), self.p, self.training)

    def __init__(self):
        super().__init__()
        self.token, self.blocks = nn.Embedding(9, 8), nn.ModuleList([self.Block(), self.Block()])

    def forward(self, ids, grid):
        assert grid.shape == (7, 3)
        x = self.token(ids)
        for block in self.blocks:
            x = block(x)
        return x


def test_places_read_off_code_name_the_functions_that_go_on_dropping():
    with pytest.warns(UserWarning, match=r"blocks\.0, blocks\.1 drop with functions there.*give inputs="):
        handle = td.set_rates(Secretive(), {"mlp_output": 0.0})
    assert "blocks.0  other" in handle.beside


def test_with_inputs_the_functions_are_silenced():
    model, inputs = Secretive(), (torch.arange(8).view(2, 4), torch.ones(7, 3))
    td.set_rates(model, {"mlp_output": 0.0, "attention_output": 0.0}, inputs=inputs)
    assert torch.equal(model(*inputs), model(*inputs))


class OneRate(nn.TransformerEncoderLayer):
    """A layer as a whole model, whose embedding, a bare table, is dropped at the rate of all the rest."""

    def __init__(self):
        super().__init__(8, 2, 16, dropout=0.0, batch_first=True)
        self.table, self.p = nn.Parameter(torch.randn(9, 8)), 0.3

    def forward(self, ids):
        x = F.dropout(self.table[ids], self.p, self.training)
        x = self.norm1(x + F.dropout(self.self_attn(x, x, x)[0], self.p, self.training))
        return self.norm2(x + F.dropout(self.linear2(self.linear1(x).relu()), self.p, self.training))


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_dropout_that_shares_its_rate_with_a_place_is_told_of(wrapped):
    model, inputs = nn.Sequential(OneRate()) if wrapped else OneRate(), (torch.arange(8).view(2, 4),)
    where, rate = ("0", "0.p") if wrapped else ("the model itself", "p")
    with pytest.warns(UserWarning, match=f"A dropout in {where} reads {rate} too, .* from 0.3 to 0, and no"):
        handle = td.set_rates(model, {"attention_output": 0.1}, inputs=inputs)
    assert handle.beside == (f"{where}  other  {rate}, which the recipe has set to 0",)
    handle.remove()
    # A place whose rate is another's leaves it alone.
    handle = td.set_rates(model, {"attention_weights": 0.1}, inputs=inputs)
    assert sum(line.endswith("  0.3") for line in handle.beside) == 3


@pytest.mark.parametrize("verb", [td.find_sites, td.check_sites])
def test_a_compiled_model_is_said_to_be_compiled(verb):
    with pytest.raises(td.InputError, match=r"is compiled, .* call td\."):
        verb(torch.compile(two_linears(), backend="eager"))


class NeverAnyRate(nn.Module):
    """Attention that refuses any rate but 0, as flex attention does."""

    def __init__(self):
        super().__init__()
        self.dropout, self.qkv, self.out = 0.0, nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        if self.dropout:
            raise ValueError("flex attention does not support dropout")
        query, key, value = self.qkv(x).chunk(3, -1)
        return x + self.out(F.scaled_dot_product_attention(query, key, value))


def test_an_attention_that_refuses_any_rate_is_run_without():
    model = nn.Sequential(NeverAnyRate(), NeverAnyRate())
    sites = td.find_sites(model, torch.ones(2, 5, 8))
    assert {(site.kind, site.found) for site in sites} >= {("attention_output", "run")}
