"""R-Drop, NEFTune and mixout by hand, in expectation, and gone without a trace when removed."""

import copy
import math
import os
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

import transformer_dropout as td
from transformer_dropout.losses import mixout

# R-Drop


def softmax(logits):
    total = sum(math.exp(v) for v in logits)
    return [math.exp(v) / total for v in logits]


def rdrop_by_hand(first, second, labels, weight):
    total = counted = 0
    for one, two, label in zip(first, second, labels, strict=True):
        if label == -100:
            continue
        p, q = softmax(one), softmax(two)
        there = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        back = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
        total += -math.log(p[label]) - math.log(q[label]) + weight * (there + back) / 2
        counted += 1
    return total / counted


logits = st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=4, max_size=4)


@given(logits, logits, st.floats(0, 5))
def test_rdrop_by_hand(first, second, weight):
    labels = [2, 0, -100, 1]
    result = td.rdrop_loss(
        torch.tensor(first, dtype=torch.float64),
        torch.tensor(second, dtype=torch.float64),
        torch.tensor(labels),
        weight,
    )
    assert result.item() == pytest.approx(rdrop_by_hand(first, second, labels, weight))


def random_logits(*shape, dtype=torch.float64):
    torch.manual_seed(0)
    return torch.randn(2, *shape, dtype=dtype, requires_grad=True)


def test_rdrop_of_equal_logits_is_twice_the_cross_entropy():
    one, _ = random_logits(6, 4)
    labels = torch.arange(6) % 4
    assert td.rdrop_loss(one, one, labels, 3.0).item() == pytest.approx(
        2 * F.cross_entropy(one, labels).item()
    )


def test_rdrop_is_symmetric_and_its_gradient_is_right():
    labels = torch.tensor([0, 3, -100])
    one, two = random_logits(3, 4)
    assert td.rdrop_loss(one, two, labels, 2.0).item() == td.rdrop_loss(two, one, labels, 2.0).item()
    assert torch.autograd.gradcheck(lambda x: td.rdrop_loss(x[0], x[1], labels, 2.0), random_logits(3, 4))


def test_rdrop_of_tokens_is_rdrop_of_the_flat_batch():
    one, two = random_logits(2, 5, 3)
    labels = torch.randint(3, (2, 5))
    labels[0, 3:] = -100
    flat = td.rdrop_loss(one.flatten(0, 1), two.flatten(0, 1), labels.flatten(), 1.0)
    assert td.rdrop_loss(one, two, labels, 1.0).item() == flat.item()


def test_a_padding_label_of_ones_own_is_not_counted():
    one, two = random_logits(3, 4)
    without = td.rdrop_loss(one[:2], two[:2], torch.tensor([1, 2]), 1.0)
    with_it = td.rdrop_loss(one, two, torch.tensor([1, 2, 0]), 1.0, ignore_index=0)
    assert with_it.item() == pytest.approx(without.item())


def test_a_class_masked_with_minus_infinity_leaves_loss_and_gradient_finite():
    both = random_logits(3, 4).detach()
    both[..., 1] = -torch.inf
    both.requires_grad_()
    loss = td.rdrop_loss(both[0], both[1], torch.tensor([0, 2, 3]), 1.0)
    loss.backward()
    unmasked = both.detach()[..., [0, 2, 3]]
    assert loss.item() == pytest.approx(
        td.rdrop_loss(unmasked[0], unmasked[1], torch.tensor([0, 1, 2]), 1.0).item()
    )
    assert both.grad.isfinite().all()


def test_half_precision_logits_give_a_float32_loss():
    one, two = random_logits(3, 4, dtype=torch.bfloat16)
    labels = torch.tensor([0, 1, 2])
    loss = td.rdrop_loss(one, two, labels, 1.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(
        td.rdrop_loss(one.double(), two.double(), labels, 1.0).item(), rel=1e-5
    )


def test_logits_and_labels_that_do_not_fit_are_refused():
    one, two = random_logits(3, 4)
    with pytest.raises(td.InputError, match=r"\(3, 4\) and \(3, 4\) and labels of shape \(2,\)"):
        td.rdrop_loss(one, two, torch.tensor([0, 1]), 1.0)


# Two passes


class Classifier(nn.Module):
    """Answers as Hugging Face models do."""

    def __init__(self, p=0.5):
        super().__init__()
        self.dropout, self.linear = nn.Dropout(p), nn.Linear(4, 3)
        self.seen = []

    def forward(self, x, scale=None, flag=True):
        self.seen.append(x.shape[0])
        assert flag is True
        return SimpleNamespace(logits=self.linear(self.dropout(x)) * (1 if scale is None else scale))


@pytest.mark.parametrize("doubled", [True, False])
def test_two_passes_see_independent_noise(doubled):
    torch.manual_seed(0)
    model = Classifier()
    one, two = td.two_passes(model, {"x": torch.randn(5, 4), "flag": True}, doubled=doubled)
    assert one.shape == two.shape == (5, 3)
    assert not one.equal(two)
    assert model.seen == ([10] if doubled else [5, 5])


@pytest.mark.parametrize("doubled", [True, False])
def test_two_passes_without_noise_agree_with_the_model(doubled):
    model, x, scale = Classifier(p=0.0), torch.randn(5, 4), torch.tensor(2.0)
    expected = model(x, scale=scale).logits
    for logits in td.two_passes(model, {"x": x, "scale": scale}, doubled=doubled):
        torch.testing.assert_close(logits, expected)


def test_two_passes_take_a_single_tensor_and_plain_logits():
    linear, x = nn.Linear(4, 3), torch.randn(5, 4)
    for doubled in (True, False):
        for logits in td.two_passes(linear, x, doubled=doubled):
            torch.testing.assert_close(logits, linear(x))


def test_inputs_without_a_common_batch_cannot_be_doubled():
    inputs = {"x": torch.randn(5, 4), "scale": torch.ones(1, 3)}
    with pytest.raises(td.InputError, match=r"\[1, 5\] as first dimensions"):
        td.two_passes(Classifier(), inputs, doubled=True)
    assert len(td.two_passes(Classifier(), inputs)) == 2


def test_training_with_rdrop_brings_the_two_passes_together():
    distances = []
    for weight in (0.0, 10.0):
        torch.manual_seed(0)
        model, x, labels = Classifier(), torch.randn(64, 4), torch.randint(3, (64,))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(60):
            optimizer.zero_grad()
            td.rdrop_loss(*td.two_passes(model, {"x": x}), labels, weight).backward()
            optimizer.step()
        one, two = td.two_passes(model, {"x": x})
        distances.append((one.softmax(-1) - two.softmax(-1)).abs().mean().item())
    assert distances[1] < distances[0] / 2


# NEFTune


def test_noise_is_uniform_within_its_bound():
    torch.manual_seed(0)
    x = torch.randn(50, 10, 40)
    noise = td.neftune_noise(x, 6.0) - x
    bound = 6 / math.sqrt(10 * 40)
    assert noise.abs().max() <= bound * (1 + 1e-5)
    assert noise.abs().max() > 0.99 * bound
    assert noise.mean().abs() < 5 * bound / math.sqrt(3 * noise.numel())
    assert noise.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    # Each text's noise has the same norm, whatever its length.
    assert noise.flatten(1).norm(dim=1).mean().item() == pytest.approx(6 / math.sqrt(3), rel=0.02)


def test_noise_scales_with_real_tokens_and_spares_padding():
    torch.manual_seed(0)
    x = torch.zeros(3, 400, 8, dtype=torch.float64)
    mask = torch.ones(3, 400, dtype=torch.long)
    mask[1, 100:], mask[2] = 0, 0
    noise = td.neftune_noise(x, 5.0, mask)
    assert noise[1, 100:].count_nonzero() == noise[2].count_nonzero() == 0
    for text, length in ((0, 400), (1, 100)):
        bound = 5 / math.sqrt(length * 8)
        assert 0.98 * bound < noise[text].abs().max() <= bound
    assert noise.isfinite().all()


def test_a_full_mask_changes_nothing_and_alpha_zero_neither():
    x = torch.randn(2, 3, 4)
    results = []
    for mask in (None, torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)):
        torch.manual_seed(0)
        results.append(td.neftune_noise(x, 5.0, mask))
    torch.testing.assert_close(results[0], results[1])
    assert results[1].equal(results[2])
    assert td.neftune_noise(x, 0.0).equal(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_noise_keeps_the_dtype_and_the_gradient(dtype):
    x = torch.randn(2, 3, 4, dtype=dtype, requires_grad=True)
    y = td.neftune_noise(x, 5.0, torch.ones(2, 3))
    assert y.dtype == dtype
    y.sum().backward()
    assert x.grad.eq(1).all()


def compile_and_count(model):
    """Return the model compiled as one graph, and the list of the graphs that were needed so far."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    return torch.compile(model, backend=backend, fullgraph=True), graphs


# torch.compile looks at the .grad of a hook's argument and hides the warning only where it is no error.
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_one_compiled_graph_serves_every_alpha():
    model = Outer()
    handle = td.neftune_(model, td.Linear(0.0, 8.0))
    compiled, graphs = compile_and_count(model)
    plain, mask = model.reader.tokens.weight[IDS].detach(), torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert compiled(IDS, reader_mask=mask).equal(plain)
    for progress in (0.3, 0.6, 1.0):
        handle.set_progress(progress)
        assert compiled(IDS, reader_mask=mask).eq(plain).all(-1).tolist() == mask.eq(0).tolist()
    assert len(graphs) == 1
    assert handle._masks == []


class Reader(nn.Module):
    """A text model that returns its embeddings."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(9, 4)

    def forward(self, ids, attention_mask=None):
        return self.tokens(ids)


class Outer(nn.Module):
    """Gives the reader another mask than it was given itself."""

    def __init__(self):
        super().__init__()
        self.reader, self.positions = Reader(), nn.Embedding(9, 4)

    def get_input_embeddings(self):
        return self.reader.tokens

    def forward(self, ids, attention_mask=None, reader_mask=None):
        if ids.numel() == 0:
            raise RuntimeError("empty")
        return self.reader(ids, reader_mask)


IDS = torch.arange(6).view(2, 3)


def padded(result, model):
    """Say for each token whether it has no noise."""
    return result.eq(model.get_input_embeddings()(IDS)).all(-1).tolist()


def test_the_hook_adds_noise_in_training_only_and_goes_without_a_trace():
    model = Outer()
    before, keys = model(IDS), list(model.state_dict())
    handle = td.neftune_(model, 5.0)
    assert not model(IDS).equal(before)
    assert list(model.state_dict()) == keys
    assert model.eval()(IDS).equal(before)
    handle.remove()
    assert model.train()(IDS).equal(before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(td.InputError, match="removed already"):
        handle.remove()


def test_the_hook_uses_the_mask_of_the_innermost_module_that_is_given_one():
    model = Outer()
    td.neftune_(model, 5.0)
    plain = model.reader.tokens.weight[IDS].detach()
    outer, inner = torch.tensor([[0, 0, 1]] * 2), torch.tensor([[1, 1, 0], [1, 0, 0]])
    result = model(IDS, outer, reader_mask=inner)
    assert result.eq(plain).all(-1).tolist() == inner.eq(0).tolist()
    assert not model(IDS, outer).eq(plain).all(-1).any()  # the reader itself was given none
    result = model.reader(ids=IDS, attention_mask=outer)
    assert result.eq(plain).all(-1).tolist() == outer.eq(0).tolist()
    four_dimensional = torch.ones(2, 1, 3, 3)
    assert not model(IDS, reader_mask=four_dimensional).eq(plain).all(-1).any()


def test_a_forward_that_fails_leaves_no_mask_behind():
    model = Outer()
    handle = td.neftune_(model, 5.0)
    with pytest.raises(RuntimeError, match="empty"):
        model(torch.empty(0, 3, dtype=torch.long), torch.zeros(2, 3))
    assert handle._masks == []


def test_alpha_follows_its_schedule():
    model = Reader()
    handle = td.neftune_(model, td.Linear(0.0, 8.0))
    assert model(IDS).equal(model.tokens.weight[IDS])
    handle.set_progress(0.5)
    assert handle.alpha == 4.0
    assert not model(IDS).equal(model.tokens.weight[IDS])


def test_a_copied_model_has_its_own_noise():
    model = Outer()
    handle = td.neftune_(model, 5.0)
    other = copy.deepcopy(model)
    handle.remove()
    plain = model(IDS)
    assert not other(IDS).equal(plain)
    assert other.eval()(IDS).equal(plain)


def test_the_embedding_is_the_only_one_or_the_named_one_or_asked_for():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Embedding(9, 4))
    with pytest.raises(td.InputError, match=r"embedding='PATH', one of: 0, 1\."):
        td.neftune_(model, 5.0)
    with pytest.raises(td.InputError, match=r"'2', which is no module\. Known: 0, 1\."):
        td.neftune_(model, 5.0, embedding="2")
    with pytest.raises(td.InputError, match=r"none is an nn\.Embedding"):
        td.neftune_(nn.Linear(2, 2), 5.0)
    with pytest.raises(td.InputError, match=r"alpha is -1\.0"):
        td.neftune_(Reader(), -1.0)
    td.neftune_(model, 5.0, embedding="0")
    assert not model[0](IDS).equal(model[0].weight[IDS])
    assert model[1](IDS).equal(model[1].weight[IDS])


@pytest.fixture
def transformers():
    os.environ["HF_HUB_OFFLINE"] = "1"
    return pytest.importorskip("transformers")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_encoder_and_decoder_are_both_reached_with_their_own_masks(family, transformers):
    # Both call modules of their own that are tied to the shared one, which nobody calls.
    small = {"d_model": 16, "vocab_size": 20, "decoder_start_token_id": 1, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(
        family, **small, num_layers=1, num_heads=2, d_kv=8, d_ff=8, encoder_layers=1, decoder_layers=1
    )
    model = transformers.AutoModel.from_config(config).train()
    seen = []
    handle = td.neftune_(model, 5.0)
    for part in (model.encoder, model.decoder):
        part.embed_tokens.register_forward_hook(
            lambda m, a, out: seen.append(out - F.embedding(a[0], m.weight))
        )
    ids = torch.randint(2, 20, (2, 3))
    masks = torch.tensor([[1, 1, 1], [1, 0, 0]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    model(input_ids=ids, attention_mask=masks[0], decoder_input_ids=ids, decoder_attention_mask=masks[1])
    for noise, mask in zip(seen, masks, strict=True):
        assert (noise != 0).any(-1).tolist() == mask.bool().tolist()
    handle.remove()


# Mixout


@given(st.lists(st.floats(-9, 9), min_size=4, max_size=4), st.floats(0, 0.9))
def test_every_element_is_one_of_the_two_values_of_the_formula(values, p):
    w, u = torch.tensor(values, dtype=torch.float64), torch.tensor([1.0, -1.0, 0.5, 0.0], dtype=torch.float64)
    plain, mixed_in = (w - p * u) / (1 - p), (u - p * u) / (1 - p)
    result = mixout(w, u, p)
    near = torch.minimum((result - plain).abs(), (result - mixed_in).abs())
    assert near.max() < 1e-9


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_mixout_keeps_the_expectation_and_mixes_at_its_rate(kind):
    torch.manual_seed(0)
    w, u, p = torch.full((200_000,), 2.0), torch.full((200_000,), 1.0), 0.3
    result = mixout(w, u, kind(p))
    assert result.mean().item() == pytest.approx(2.0, abs=0.01)  # over six standard errors
    assert result.eq(1.0).float().mean().item() == pytest.approx(p, abs=0.006)


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_mixout_at_its_ends(kind):
    w, u = torch.randn(50), torch.randn(50)
    assert mixout(w, u, kind(1.0)).equal(u)
    torch.testing.assert_close(mixout(w, u, kind(0.0)), w)


def test_the_gradient_of_mixout_is_the_mask():
    w, u = torch.randn(99, requires_grad=True), torch.randn(99)
    result = mixout(w, u, 0.5)
    result.sum().backward()
    assert w.grad.tolist() == [0.0 if same else 2.0 for same in result.eq(u).tolist()]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(7, 4)
        self.body, self.norm, self.output = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 7)
        self.output.weight = self.tokens.weight

    def forward(self, ids):
        return self.output(self.norm(self.body(self.tokens(ids)).tanh()))


@pytest.fixture
def tied():
    """A model one step away from where it started, and its start."""
    torch.manual_seed(0)
    model = Tied()
    start = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter)
    return model, start


def test_mixout_mixes_in_training_only_and_goes_without_a_trace(tied):
    model, start = tied
    before, parameters, keys = model(IDS), dict(model.named_parameters()), list(model.state_dict())
    handle = td.mixout_(model, 0.5, pretrained=start)
    assert handle.names == ["body.weight"]
    assert not model(IDS).equal(before)
    assert not model(IDS).equal(model(IDS))
    assert list(model.state_dict()) == keys
    assert model.eval()(IDS).equal(before)
    handle.remove()
    assert model.train()(IDS).equal(before)
    assert dict(model.named_parameters()) == parameters  # the same objects in the same order
    assert list(dict(model.named_parameters())) == list(parameters)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(td.InputError, match="removed already"):
        handle.remove()


def test_with_p_one_the_pretrained_weights_act(tied):
    model, start = tied
    td.mixout_(model, 1.0, pretrained=start, select="*.weight")
    expected = Tied()
    expected.load_state_dict(
        {n: start[n] if n.endswith("weight") else t for n, t in model.state_dict().items()}
    )
    torch.testing.assert_close(model(IDS), expected(IDS))


def test_without_pretrained_the_weights_are_mixed_with_themselves_until_they_move(tied):
    model, _ = tied
    before = model(IDS)
    td.mixout_(model, 0.5)
    torch.testing.assert_close(model(IDS), before)
    with torch.no_grad():
        model.body.weight += 1.0
    assert not model(IDS).allclose(model(IDS))


def test_what_the_pretrained_lack_is_not_mixed(tied):
    model, start = tied
    model.body = nn.Linear(4, 4)
    start = {name: tensor for name, tensor in start.items() if "body" not in name}
    assert td.mixout_(model, 0.5, pretrained=start, select="*.weight").names == [
        *("tokens.weight", "output.weight", "norm.weight")
    ]


def test_gradients_are_those_of_the_mixed_weight():
    model = nn.Linear(3, 2, bias=False)
    start = model.weight.detach() + 1.0
    td.mixout_(model, 0.5, pretrained={"weight": start})
    x = torch.randn(5, 3)
    torch.manual_seed(3)
    model(x).square().sum().backward()
    twin = model.weight.detach().clone().requires_grad_()
    torch.manual_seed(3)
    (x @ mixout(twin, start, 0.5).T).square().sum().backward()
    torch.testing.assert_close(model.weight.grad, twin.grad)


def test_training_under_mixout_pulls_to_the_pretrained_weights():
    torch.manual_seed(0)
    x, distances = torch.randn(64, 6), []
    for p in (0.0, 0.8):
        torch.manual_seed(1)
        model = nn.Linear(6, 1)
        start = model.weight.detach().clone()
        td.mixout_(model, p)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(600):
            optimizer.zero_grad()
            (model(x)[:, 0] - x.sum(dim=1) * 3).square().mean().backward()
            optimizer.step()
        distances.append((model.weight.detach() - start).norm().item())
    assert distances[1] < 0.7 * distances[0]


def test_p_follows_its_schedule(tied):
    model, start = tied
    handle = td.mixout_(model, td.Linear(0.0, 1.0), pretrained=start)
    plain = model.eval()(IDS)
    torch.testing.assert_close(model.train()(IDS), plain)
    handle.set_progress(0.5)
    assert handle.p == 0.5
    assert not model(IDS).allclose(plain)


def test_a_forward_that_fails_leaves_the_parameter_in_place(tied):
    model, start = tied
    td.mixout_(model, 0.5, pretrained=start)
    parameter = model.body.weight
    with pytest.raises(RuntimeError):
        model.body(torch.randn(3, 5))
    assert model.body.weight is parameter


def test_a_recomputation_draws_the_same_mixture(tied):
    model, start = tied
    td.mixout_(model, 0.5, pretrained=start)
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model.zero_grad()
        x = torch.randn(3, 4, requires_grad=True)
        y = checkpoint(model.body, x, use_reentrant=False) if checkpointed else model.body(x)
        y.square().sum().backward()
        gradients.append(model.body.weight.grad)
    assert gradients[0].equal(gradients[1])
    assert isinstance(model.body.weight, nn.Parameter)


def test_one_compiled_graph_serves_every_p(tied):
    model, start = tied
    handle = td.mixout_(model, td.Linear(0.0, 1.0), pretrained=start)
    compiled, graphs = compile_and_count(model)
    outputs = []
    for progress in (0.0, 0.3, 0.6, 1.0):
        handle.set_progress(progress)
        outputs.append(compiled(IDS).detach())
    assert len(graphs) == 1
    torch.testing.assert_close(outputs[0], model.eval()(IDS))
    model.train()
    torch.testing.assert_close(outputs[-1], model(IDS))
    assert isinstance(model.body.weight, nn.Parameter)


def test_a_copied_model_has_its_own_mixture(tied):
    model, start = tied
    handle = td.mixout_(model, 1.0, pretrained=start)
    other = copy.deepcopy(model)
    mixed = model(IDS)
    handle.remove()
    assert other(IDS).equal(mixed)
    assert not model(IDS).equal(mixed)


def test_the_projection_of_multi_head_attention_is_reached():
    model = nn.MultiheadAttention(4, 2)
    start = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter)
    x = torch.randn(3, 1, 4)
    handle = td.mixout_(model, 1.0, pretrained=start, select=["in_proj_weight", "out_proj.weight"])
    assert handle.unreached == ["in_proj_weight", "out_proj.weight"]
    mixed = model(x, x, x)[0]
    assert handle.unreached == []
    handle.remove()
    model.load_state_dict(start | {n: t for n, t in model.state_dict().items() if n.endswith("bias")})
    torch.testing.assert_close(mixed, model(x, x, x)[0])


def test_a_weight_that_no_forward_reaches_is_reported(tied):
    model, _ = tied
    model.unused = nn.Linear(2, 2)
    handle = td.mixout_(model, 0.5)
    model(IDS)
    assert handle.unreached == ["unused.weight"]


def test_a_module_that_is_held_twice_mixes_once():
    linear = nn.Linear(2, 2)
    assert len(td.mixout_(nn.Sequential(linear, linear), 0.5).names) == 1


def test_a_second_mixout_of_a_weight_is_refused_and_changes_nothing(tied):
    model, start = tied
    first = td.mixout_(model, 0.5, pretrained=start, select="body.weight")
    with pytest.raises(td.InputError, match=r"body\.weight is mixed already"):
        td.mixout_(model, 0.5, pretrained=start, select=["tokens.weight", "body.weight"])
    assert not model.tokens._forward_hooks
    first.remove()
    td.mixout_(model, 0.5, pretrained=start)


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_a_p_that_is_no_probability_is_refused_and_changes_nothing(tied, p):
    model, start = tied
    with pytest.raises(td.InputError, match="between 0 and 1"):
        td.mixout_(model, p, pretrained=start)
    assert not model.body._forward_hooks


def test_a_state_dict_of_another_model_is_refused(tied):
    with pytest.raises(td.InputError, match="this very model class"):
        td.mixout_(tied[0], 0.5, pretrained={"bert.body.weight": torch.zeros(4, 4)})
