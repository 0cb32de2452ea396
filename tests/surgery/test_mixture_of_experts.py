import copy

import pytest
import torch
from torch import nn

import transformer_dropout as td
from transformer_dropout.surgery.mixture_of_experts import MixtureOfExperts, load_balancing
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

WIDTH, HIDDEN = 6, 10


def decoder():
    torch.manual_seed(0)
    return Decoder(11, DecoderConfig(width=8, heads=2, blocks=2, context=8))


def mixture(experts=4, top_k=2):
    torch.manual_seed(1)
    built = MixtureOfExperts(WIDTH, HIDDEN, experts, top_k)
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.5)
    return built


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_each_token_meets_its_most_probable_experts(top_k):
    built, x = mixture(top_k=top_k), torch.randn(3, 5, WIDTH)
    found = built(x)
    for row, y in zip(x.view(-1, WIDTH), found.view(-1, WIDTH), strict=True):
        shares = (built.router.weight @ row).softmax(0)
        expected = torch.zeros(WIDTH)
        for e in sorted(range(4), key=lambda e: -shares[e].item())[:top_k]:
            expected += shares[e] * (built.contract[e] @ nn.functional.gelu(built.expand[e] @ row))
        torch.testing.assert_close(y, expected)


def test_the_balance_is_the_formula_and_one_when_even():
    probabilities = torch.rand(50, 4).softmax(-1)
    chosen = probabilities.topk(2).indices
    expected = sum(4 * (chosen == e).sum().item() / 100 * probabilities[:, e].mean().item() for e in range(4))
    assert load_balancing(probabilities, chosen).item() == pytest.approx(expected, rel=1e-5)
    even = torch.full((8, 4), 0.25)
    assert load_balancing(even, torch.arange(8)[:, None] % 4).item() == pytest.approx(1)
    one = torch.eye(4)[[2] * 8]
    assert load_balancing(one, torch.full((8, 1), 2)).item() == pytest.approx(4)


def test_the_router_learns_from_the_task_and_from_the_balance():
    built = mixture(top_k=1)
    built(torch.randn(20, WIDTH)).sum().backward(retain_graph=True)
    assert built.router.weight.grad.abs().sum() > 0
    built.zero_grad()
    built.balance.backward()
    assert built.router.weight.grad.abs().sum() > 0
    assert built.expand.grad is None or built.expand.grad.abs().sum() == 0


@pytest.mark.parametrize("top_k", [1, 2])
def test_as_many_parameters_act_on_a_token_as_in_the_mlp(top_k):
    model = decoder()
    before = sum(p.numel() for p in model.blocks[0].mlp.parameters())
    handle = td.mixture_of_experts_(model, experts=4, top_k=top_k)
    assert list(handle.placed) == ["blocks.0.mlp", "blocks.1.mlp"]
    placed = model.blocks[0].mlp
    assert top_k * (placed.expand[0].numel() + placed.contract[0].numel()) == before
    assert sum(p.numel() for p in placed.parameters()) == 4 * before // top_k + 4 * 8


def test_it_trains_with_regularizers_and_goes_out_again():
    model, tokens = decoder(), torch.randint(11, (4, 9))
    plain = copy.deepcopy(model)
    handle = td.mixture_of_experts_(model, weight=0.5)
    reg = td.regularize_(model, td.Recipe([td.Rule("mlp_output", td.LearnedDropout, heads=2, weight=0.1)]))
    loss = model(tokens[:, :-1], tokens[:, 1:]) + reg.penalty() + handle.penalty()
    loss.backward()
    assert all(p.grad is not None for p in handle.placed["blocks.1.mlp"].parameters() if p.requires_grad)
    with pytest.raises(td.InputError, match="once after each forward"):
        handle.penalty()
    copied = copy.deepcopy(model)
    assert torch.equal(copied.eval()(tokens[:, :-1]), model.eval()(tokens[:, :-1]))
    reg.remove()
    handle.remove()
    assert torch.equal(model(tokens[:, :-1]), plain.eval()(tokens[:, :-1]))
    assert list(model.state_dict()) == list(plain.state_dict())


def test_experts_have_the_numbers_of_the_mlp_that_they_replace():
    model = decoder().double().eval()
    handle = td.mixture_of_experts_(model)
    placed = handle.placed["blocks.0.mlp"]
    assert placed.expand.dtype == torch.float64 and not placed.training
    assert model(torch.zeros(1, 3, dtype=torch.long)).dtype == torch.float64


def test_other_models_mlps_by_their_paths():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.feed = nn.ModuleList(
                nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 4)) for _ in range(2)
            )

        def forward(self, x):
            for feed in self.feed:
                x = x + feed(x)
            return x

    model = Net()
    td.mixture_of_experts_(model, "feed.[01]", experts=3)
    assert model(torch.randn(5, 4)).shape == (5, 4)
    assert isinstance(model.feed[1], MixtureOfExperts)


def encoder(**words):
    torch.manual_seed(0)
    words = {"dropout": 0.0, "batch_first": True} | words
    layer = nn.TransformerEncoderLayer(16, 2, 24, **words)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=not layer.norm_first)


@pytest.mark.parametrize("norm_first", [False, True])
def test_pytorchs_own_layers_have_experts_for_their_products(norm_first):
    model, x = encoder(norm_first=norm_first, activation="gelu"), torch.randn(2, 5, 16)
    plain, before = copy.deepcopy(model).eval(), list(model.state_dict())
    plain.use_nested_tensor, expected = False, plain(x)
    handle = td.mixture_of_experts_(model, experts=1)
    assert list(handle.placed) == ["layers.0.mlp", "layers.1.mlp"]
    assert not [name for name in model.state_dict() if "linear" in name]
    with torch.no_grad():
        # One expert has a share of 1, so it is the MLP without its biases.
        for layer, own in zip(model.layers, plain.layers, strict=True):
            layer.mlp.expand[0], layer.mlp.contract[0] = own.linear1.weight, own.linear2.weight
            for linear in (own.linear1, own.linear2):
                linear.bias.zero_()
    for made in (model.eval(), copy.deepcopy(model)):
        torch.testing.assert_close(made(x), plain(x))
        with torch.no_grad():
            # Where PyTorch would compute both products in one operation, with padding or without.
            torch.testing.assert_close(made(x), plain(x))
            padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
            real = made(x, src_key_padding_mask=padding)[~padding]
            torch.testing.assert_close(real, plain(x, src_key_padding_mask=padding)[~padding])
    handle.remove()
    assert list(model.state_dict()) == before
    torch.testing.assert_close(model(x), expected)


def test_of_pytorchs_decoder_layers_too_and_of_one_alone():
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(16, 2, 24, dropout=0.5)
    td.mixture_of_experts_(layer, "mlp", top_k=2)
    x, memory = torch.randn(4, 3, 16), torch.randn(5, 3, 16)
    layer(x, memory).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    assert not torch.equal(layer(x, memory), layer(x, memory))
    layer.dropout.p = layer.dropout1.p = layer.dropout2.p = layer.dropout3.p = 0.0
    layer.self_attn.dropout = layer.multihead_attn.dropout = 0.0
    assert torch.equal(layer(x, memory), layer(x, memory))


def test_a_layer_with_a_feed_forward_part_of_its_own_is_left_alone():
    class Gated(nn.TransformerEncoderLayer):
        def _ff_block(self, x):
            return self.linear2(self.linear1(x) * self.linear1(x).sigmoid())

    with pytest.raises(td.InputError, match="matches no module"):
        td.mixture_of_experts_(nn.Sequential(Gated(16, 2, 24)))
    # A second time there is a mixture, and none of it is replaced.
    model = encoder()
    td.mixture_of_experts_(model)
    with pytest.raises(td.InputError, match="no MLP of two linear layers"):
        td.mixture_of_experts_(model)


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize(
    ("make", "path", "given"),
    [
        (encoder, "layers.{}.dropout", torch.randn(2, 5, 16)),
        (decoder, "blocks.{}.mlp.activation", torch.arange(10).view(2, 5)),
    ],
)
def test_hidden_units_of_all_experts_meet_a_layer_once_a_forward(make, path, given, top_k):
    model, seen = make(), []
    td.mixture_of_experts_(model, top_k=top_k)
    reg = td.regularize_(model, td.Recipe([td.Rule("mlp_hidden", td.SparseReLU, weight=1.0)]))
    for block in range(2):
        layer = model.get_submodule(f"{path.format(block)}.mlp_hidden_dropout")
        layer.register_forward_hook(lambda m, x, y: seen.append(y))
    model(given)
    assert [len(y) for y in seen] == [10 * top_k] * 2
    assert reg.penalty().item() == pytest.approx(sum(y.mean().item() for y in seen) / 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 5}, "from 1 to 4"),
        ({"select": "*.feed"}, "matches no module"),
        ({"select": "*.attention"}, "no MLP of two linear layers"),
        ({"experts": 3, "top_k": 3}, "not divided by top_k 3"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_model_stays(arguments, message):
    model = decoder()
    before = list(model.state_dict())
    with pytest.raises(td.InputError, match=message):
        td.mixture_of_experts_(model, **arguments)
    assert list(model.state_dict()) == before
