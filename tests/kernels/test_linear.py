"""Linear layers through oneDNN, against the product in float64."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import transformer_dropout as td
from transformer_dropout.errors import InputError
from transformer_dropout.kernels import linear as kernel
from transformer_dropout.kernels.linear import is_fast, linear, takes_onednn
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig


@pytest.fixture(autouse=True)
def every_size(monkeypatch):
    monkeypatch.setattr(kernel, "SMALL", 0)
    torch.manual_seed(0)


def error(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("shape", [(64, 40), (3, 17, 40), (2, 3, 5, 40)])
@pytest.mark.parametrize("outputs", [24, 56])
@pytest.mark.parametrize("bias", [False, True])
def test_results_and_gradients_are_those_of_float64(shape, outputs, bias):
    tensors = [torch.randn(shape), torch.randn(outputs, 40), torch.randn(outputs) if bias else None]
    ours, exact = (
        [t if t is None else t.to(dtype, copy=True).requires_grad_() for t in tensors]
        for dtype in (torch.float32, torch.float64)
    )
    y, expected = linear(*ours), F.linear(*exact)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    expected.backward(gradient.double())
    assert y.grad_fn.name() == "OneDnnProductBackward"
    assert error(y, expected) < 1e-6
    for found, wanted in zip(ours, exact, strict=True):
        if found is not None:
            assert error(found.grad, wanted.grad) < 1e-6


def test_a_gradient_has_a_gradient():
    x, weight = torch.randn(8, 6, requires_grad=True), torch.randn(4, 6, requires_grad=True)
    found = []
    for function in (linear, F.linear):
        (gradient,) = torch.autograd.grad(function(x, weight).pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), (x, weight)))
    for ours, expected in zip(*found, strict=True):
        assert error(ours, expected) < 1e-6


def test_a_part_of_a_wider_weight_and_any_view_of_the_input_will_do():
    wide = torch.randn(40, 3000)
    for x in (torch.randn(700, 90)[:, :40], torch.randn(40, 700).t(), torch.randn(1, 40).expand(700, 40)):
        assert error(linear(x, wide[:, 7:1007].t()), x.double() @ wide[:, 7:1007].double()) < 1e-6


# Forward-mode gradients import a module of torch that warns about itself.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_what_is_not_float32_of_a_processor_takes_the_other_path():
    x, weight = torch.randn(8, 6), torch.randn(4, 6)
    assert takes_onednn(x, weight)
    assert not takes_onednn(x.double(), weight)
    assert not takes_onednn(x.to("meta"), weight)
    assert not takes_onednn(x[:0], weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    with FlopCounterMode(display=False) as counter:
        linear(x, weight)
    assert counter.get_total_flops() == 2 * 8 * 6 * 4
    assert torch.equal(torch.func.vmap(lambda row: linear(row[None], weight)[0])(x), F.linear(x, weight))
    _, tangent = torch.func.jvp(lambda x: linear(x, weight), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, weight.sum(1).expand(8, 4))


def test_a_compiled_layer_has_no_break_and_the_same_result():
    torch._dynamo.reset()
    layer = nn.Linear(6, 4)
    td.speed_up_(layer)
    x = torch.randn(8, 6)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    torch._dynamo.reset()


class Own(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


def model():
    return nn.Sequential(
        nn.Linear(6, 8), nn.GELU(), nn.ModuleDict({"own": Own(8, 8)})["own"], nn.Linear(8, 2)
    )


def test_speed_up_changes_plain_linear_layers_and_nothing_of_the_results():
    plain = model()
    seen = []
    plain[0].register_forward_hook(lambda module, arguments, output: seen.append(output))
    fast, x = copy.deepcopy(plain), torch.randn(5, 6)
    td.speed_up_(fast)
    td.speed_up_(fast)
    assert [is_fast(layer) for layer in fast] == [True, False, False, True]
    assert [type(layer) for layer in fast] == [type(layer) for layer in plain]
    torch.testing.assert_close(fast(x), plain(x))
    assert len(seen) == 2
    assert fast.state_dict().keys() == plain.state_dict().keys()
    again = pickle.loads(pickle.dumps(fast[3]))
    hidden = torch.randn(5, 8)
    assert torch.equal(again(hidden), fast[3](hidden))


def test_speed_up_of_a_model_without_linear_layers_says_so():
    with pytest.raises(InputError, match=r"found no nn\.Linear in this GELU"):
        td.speed_up_(nn.GELU())


def test_speed_up_lives_beside_layers_put_in_before_and_after():
    for first in (True, False):
        net = Decoder(16, DecoderConfig(width=8, heads=2, blocks=2, context=8))
        before = {name: tensor.shape for name, tensor in net.state_dict().items()}
        if first:
            td.speed_up_(net)
        handle = td.regularize_(net, td.Recipe([td.Rule("mlp_hidden", td.Dropout, p=1.0)]))
        td.speed_up_(net)
        tokens = torch.arange(8).view(2, 4)
        for block in net.blocks:
            assert is_fast(block.mlp.expand)
            assert block.mlp(torch.randn(1, 4, 8)).count_nonzero() == 0
        net(tokens, tokens).backward()
        handle.remove()
        assert {name: tensor.shape for name, tensor in net.state_dict().items()} == before
