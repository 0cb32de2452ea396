"""NEFTune by hand, in expectation, and gone without a trace when removed."""

import copy
import math
import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import transformer_dropout as td


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


def test_a_text_of_one_token_counts_one():
    torch.manual_seed(0)
    noise = td.neftune_noise(torch.zeros(1, 3, 400), 5.0, torch.tensor([[1, 0, 0]]))
    assert 0.98 * 0.25 < noise.abs().max() <= 0.25


@pytest.mark.parametrize("mask", [None, torch.ones(2, 3)], ids=["unmasked", "masked"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_noise_keeps_the_dtype_and_the_gradient(dtype, mask):
    x = torch.randn(2, 3, 4, dtype=dtype, requires_grad=True)
    y = td.neftune_noise(x, 5.0, mask)
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
    """Return for each token whether it has no noise."""
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
