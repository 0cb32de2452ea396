import copy
import io

import pytest
import torch

from transformer_dropout.errors import InputError
from transformer_dropout.layers import PrecomputedLearnedDropout
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
