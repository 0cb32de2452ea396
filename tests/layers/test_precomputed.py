import copy
import io

import pytest
import torch

from transformer_dropout import functional
from transformer_dropout.errors import InputError
from transformer_dropout.layers import LearnedDropout, PrecomputedLearnedDropout, precomputed
from transformer_dropout.layers.precomputed import MaskEmbedding
from transformer_dropout.recipe import Recipe, Rule
from transformer_dropout.surgery.regularize import regularize_
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

WIDTH, HEADS, TOKENS, VOCABULARY = 8, 2, 6, 19


def source(std=0.8):
    torch.manual_seed(1)
    built = MaskEmbedding(WIDTH, HEADS)
    for linear in (built.qkv, built.projection):
        torch.nn.init.normal_(linear.weight, std=std)
    return built


def layer(shared, seed=2, **arguments):
    torch.manual_seed(seed)
    built = PrecomputedLearnedDropout(WIDTH, HEADS, source=shared, shift=1.2, **arguments)
    torch.nn.init.normal_(built.qkv.weight, std=0.8)
    return built


def tensor(seed, batch=3):
    torch.manual_seed(seed)
    return torch.randn(batch, TOKENS, WIDTH)


def regularized_decoder(**arguments):
    torch.manual_seed(0)
    model = Decoder(VOCABULARY, DecoderConfig(width=WIDTH, heads=HEADS, blocks=3, context=TOKENS))
    rule = Rule("mlp_output", PrecomputedLearnedDropout, heads=HEADS, shift=1.2, weight=0.1, **arguments)
    handle = regularize_(model, Recipe([rule]))
    for parameter in model.parameters():
        # Large enough that the masks are mixed and depend on the embeddings.
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.5)
    return model, handle


def tokens(seed=4, batch=2):
    return torch.randint(0, VOCABULARY, (batch, TOKENS), generator=torch.Generator().manual_seed(seed))


def keep_probabilities(model, handle, batch):
    seen = []
    for placed in handle.placed:
        placed.layer.observer = lambda keep, mask: seen.append(keep.detach())
    model(batch)
    return seen


def test_the_mask_depends_on_the_embeddings_and_not_on_the_hidden_state():
    shared = source()
    built = layer(shared, eval_mask="mean").eval()
    shared(tensor(0))
    mask = built(torch.ones(3, TOKENS, WIDTH))
    x = tensor(5)
    assert torch.equal(built(x), x * mask)
    shared(tensor(1))
    assert not torch.allclose(built(torch.ones(3, TOKENS, WIDTH)), mask, atol=1e-2)


def test_the_mask_embedding_is_one_attention_with_an_output_projection():
    shared, x = source(), tensor(0)
    query, key, value = (shared.qkv.weight[i * WIDTH : (i + 1) * WIDTH] for i in range(3))
    hidden = torch.ones(TOKENS, TOKENS).triu(1).bool()
    heads = []
    for c in (slice(0, 4), slice(4, 8)):
        scores = (x @ query[c].T) @ (x @ key[c].T).transpose(1, 2) / 4**0.5
        heads.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ (x @ value[c].T))
    torch.testing.assert_close(shared(x), torch.cat(heads, -1) @ shared.projection.weight.T)


def test_in_a_model_every_mask_is_that_function_of_token_plus_position():
    model, handle = regularized_decoder()
    batch = tokens()
    seen = keep_probabilities(model, handle, batch)
    embedding = model.embedding.token(batch) + model.embedding.position.weight
    model.embedding.mask_embedding(embedding)
    assert len(seen) == 3
    for keep, placed in zip(seen, handle.placed, strict=True):
        torch.testing.assert_close(
            keep, placed.layer.keep_probability(placed.layer.gate(model.embedding.mask_embedding.current))
        )
    assert not torch.allclose(seen[0], seen[1], atol=1e-2)  # each layer has a gate of its own


def test_no_block_changes_the_masks():
    model, handle = regularized_decoder()
    before = keep_probabilities(model, handle, tokens())
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight.normal_()
            block.mlp.projection.weight.normal_()
    after = keep_probabilities(model, handle, tokens())
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_a_later_token_changes_no_earlier_mask():
    model, handle = regularized_decoder()
    changed = tokens()
    changed[:, -1] = (changed[:, -1] + 1) % VOCABULARY
    before = keep_probabilities(model, handle, tokens())
    for b, a in zip(before, keep_probabilities(model, handle, changed), strict=True):
        torch.testing.assert_close(a[:, :-1], b[:, :-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("detach", [True, False])
def test_the_shared_attention_is_trained_only_when_not_detached(detach):
    model, handle = regularized_decoder(detach=detach)
    (model(tokens(), tokens(5)) + handle.penalty()).backward()
    shared = model.embedding.mask_embedding
    for parameter in shared.parameters():
        assert parameter.requires_grad == (not detach)
        assert (parameter.grad is None) == detach
        assert detach or parameter.grad.count_nonzero()
    assert all(placed.layer.qkv.weight.grad.count_nonzero() for placed in handle.placed)


def test_detached_is_the_default():
    shared = source()
    shared(tensor(0).requires_grad_())
    built = layer(shared)
    built(tensor(1)).sum().backward()
    assert shared.qkv.weight.grad is None
    assert built.qkv.weight.grad.count_nonzero()


def test_the_shared_attention_is_saved_once_beside_the_embedding():
    model, handle = regularized_decoder()
    extra = [key for key in model.state_dict() if "mask_embedding" in key]
    assert extra == ["embedding.mask_embedding.qkv.weight", "embedding.mask_embedding.projection.weight"]
    shared = {id(placed.layer._source[0]) for placed in handle.placed}
    assert shared == {id(model.embedding.mask_embedding)}
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == sum(value.numel() for value in model.state_dict().values())


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_of_the_model_reads_its_own_shared_attention(way):
    model, _ = regularized_decoder()
    model(tokens())  # leaves a result behind, part of a graph that cannot be copied
    if way == "deepcopy":
        twin = copy.deepcopy(model)
    else:
        torch.save(model, buffer := io.BytesIO())
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    for block in twin.blocks:
        assert block.mlp.mlp_output_dropout._source[0] is twin.embedding.mask_embedding
    assert twin.embedding.mask_embedding is not model.embedding.mask_embedding
    model.eval(), twin.eval()
    expected = model(tokens())
    with torch.no_grad():
        model.embedding.mask_embedding.qkv.weight.zero_()
    assert torch.equal(twin(tokens()), expected)
    assert not torch.equal(model(tokens()), expected)


def test_removal_takes_the_shared_attention_out():
    model, handle = regularized_decoder()
    handle.remove()
    assert not [name for name, _ in model.named_modules() if "dropout" in name or "mask" in name]
    assert not model.embedding._forward_hooks


def test_two_rules_have_a_shared_attention_each():
    model = Decoder(VOCABULARY, DecoderConfig(width=WIDTH, heads=HEADS, blocks=2, context=TOKENS))
    kinds = ("attention_output", "mlp_output")
    handle = regularize_(model, Recipe([Rule(k, PrecomputedLearnedDropout, heads=HEADS) for k in kinds]))
    by_kind = {k: {p.layer._source[0] for p in handle.placed if p.site.kind == k} for k in kinds}
    shared = {model.embedding.mask_embedding, model.embedding.mask_embedding_1}
    assert len(by_kind["attention_output"]) == len(by_kind["mlp_output"]) == 1
    assert by_kind["attention_output"] | by_kind["mlp_output"] == shared


def test_without_embeddings_of_the_same_shape_it_says_how_to_place_it():
    shared = source()
    built = layer(shared)
    with pytest.raises(InputError, match=r"td\.regularize_"):
        built(tensor(0))
    shared(tensor(0, batch=2))
    with pytest.raises(InputError, match="embedding site"):
        built(tensor(0, batch=3))


def test_heads_are_required_and_divide_the_width():
    model = Decoder(VOCABULARY, DecoderConfig(width=WIDTH, heads=HEADS, blocks=2, context=TOKENS))
    with pytest.raises(InputError, match="needs heads"):
        regularize_(model, Recipe([Rule("mlp_output", PrecomputedLearnedDropout)]))
    with pytest.raises(InputError, match="heads that divide 8"):
        regularize_(model, Recipe([Rule("mlp_output", PrecomputedLearnedDropout, heads=3)]))


def test_a_site_wider_than_the_embeddings_is_refused_and_the_model_stays_as_it_was():
    model = Decoder(23, DecoderConfig(width=16, heads=2, blocks=1, context=8))
    before = list(model.state_dict())
    rule = Rule("mlp_hidden", PrecomputedLearnedDropout, heads=2, weight=0.1)
    with pytest.raises(InputError, match="as wide as the embeddings, 16, but this site is 64 wide"):
        regularize_(model, Recipe([rule]))
    assert list(model.state_dict()) == before


def counted_products(monkeypatch, model, run):
    """Return how many products with gate projections and attentions over the embeddings a forward makes."""
    found = {"products": 0, "attentions": 0, "in blocks": 0}
    gates = {block.mlp.mlp_output_dropout.qkv for block in model.blocks}
    attention, multiply = functional.self_attention, torch.nn.functional.linear

    def attend(qkv, *arguments, **words):
        found["attentions"] += 1
        return attention(qkv, *arguments, **words)

    def product(x, weight, bias=None):
        found["products"] += len(weight) == 3 * WIDTH * len(model.blocks)
        return multiply(x, weight, bias)

    monkeypatch.setattr(functional, "self_attention", attend)
    monkeypatch.setattr(precomputed.F, "linear", product)
    linear = torch.nn.Linear.forward
    monkeypatch.setattr(
        torch.nn.Linear,
        "forward",
        lambda self, x: found.update({"in blocks": found["in blocks"] + (self in gates)}) or linear(self, x),
    )
    run()
    return found


@pytest.mark.parametrize("training", [True, False])
def test_one_product_and_one_attention_make_the_gates_of_all_blocks(monkeypatch, training):
    model, _ = regularized_decoder()
    found = counted_products(monkeypatch, model, lambda: model.train(training)(tokens()))
    # The second attention is the one that makes the embeddings that the masks read.
    assert found == {"products": 1, "attentions": 2, "in blocks": 0}


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_gates_made_together_are_those_that_each_layer_makes_alone(detach, bias):
    model, handle = regularized_decoder(detach=detach, bias=bias)
    gradients = []
    for together in (True, False):
        model.zero_grad()
        if not together:
            # Something watches the projection, so that it has to be called.
            handle.placed[0].layer.qkv.register_forward_hook(lambda *_: None)
        torch.manual_seed(3)
        (model(tokens(), tokens(5)) + handle.penalty()).backward()
        assert (model.embedding.mask_embedding.gates is not None) == together
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_all_gates_are_there_before_the_first_block_runs():
    model, _ = regularized_decoder()
    seen = []
    model.blocks[0].register_forward_pre_hook(
        lambda *_: seen.append([gate.shape for gate in model.embedding.mask_embedding.gates])
    )
    model(tokens())
    assert seen == [[(2, TOKENS, WIDTH)] * 3]


def test_a_layer_whose_projection_is_replaced_computes_its_own_gate():
    model, handle = regularized_decoder()
    layer = handle.placed[1].layer

    class Adapted(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.weight = inner, inner.weight
            self.bias = None

        def forward(self, x):
            return 3 * self.inner(x)

    plain = keep_probabilities(model.eval(), handle, tokens())
    layer.qkv = Adapted(layer.qkv)
    adapted = keep_probabilities(model, handle, tokens())
    torch.testing.assert_close(adapted[0], plain[0])
    assert not torch.allclose(adapted[1], plain[1], atol=1e-2)


def test_padding_that_only_a_layer_is_told_of_is_not_ignored():
    shared, x = source(), tensor(0)
    built = layer(shared, eval_mask="mean").eval()
    shared(x)
    padding = torch.ones(3, TOKENS, dtype=torch.bool)
    padding[:, :2] = False
    ones = torch.ones(3, TOKENS, WIDTH)
    assert not torch.allclose(built(ones, padding)[:, 2:], built(ones)[:, 2:], atol=1e-3)
    alone = built.keep_probability(LearnedDropout.gate(built, shared.current, padding))
    torch.testing.assert_close(built(ones, padding), alone)


@pytest.mark.parametrize("other", [{"bias": True}, {"detach": False}])
def test_layers_of_different_kinds_do_not_share_an_attention(other):
    shared = source()
    layer(shared)
    with pytest.raises(InputError, match="a MaskEmbedding of its own"):
        layer(shared, **other)


def test_an_embedding_that_is_an_image_of_channels_is_refused():
    with pytest.raises(InputError, match=r"takes embeddings .*, not a tensor of \(3, 8, 4, 4\); use Learned"):
        source()(torch.randn(3, WIDTH, 4, 4))
