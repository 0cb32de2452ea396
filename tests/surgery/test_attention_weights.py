"""Dropping attention weights in the decoder: eager through the fused kernel, compiled by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from transformer_dropout.layers import Dropout
from transformer_dropout.recipe import Recipe, Rule
from transformer_dropout.schedules import Linear
from transformer_dropout.surgery._attention import (
    attention_weights,
    future,
    interface_with_layer,
    scaled_dot_product,
    weigh,
)
from transformer_dropout.surgery.regularize import regularize_
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

RULE = Rule("attention_weights", Dropout, p=Linear(0.0, 0.9))


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def regularized(rule=RULE):
    torch.manual_seed(0)
    model = Decoder(19, DecoderConfig(width=8, heads=2, blocks=2, context=6))
    for block in model.blocks:
        # Large enough that attention decides the output.
        torch.nn.init.normal_(block.attention.qkv.weight)
        torch.nn.init.normal_(block.attention.projection.weight)
    expected = model(tokens())
    return model, regularize_(model, Recipe([rule])), expected


def tokens():
    return torch.arange(12).view(2, 6)


def test_training_outputs_vary_and_evaluation_is_bit_for_bit_the_unregularized_model():
    model, handle, expected = regularized()
    handle.set_progress(0.5)
    assert not torch.equal(model(tokens()), model(tokens()))
    assert torch.equal(model.eval()(tokens()), expected)


def test_a_layer_in_evaluation_mode_alone_drops_nothing():
    model, handle, expected = regularized()
    handle.set_progress(1.0)
    for placed in handle.placed:
        placed.layer.eval()
    assert torch.equal(model(tokens()), expected)


def test_p_one_drops_all_attention():
    model, _, _ = regularized(Rule("attention_weights", Dropout, p=1.0))
    x = torch.randn(2, 6, 8)
    assert model.blocks[0].attention(x).count_nonzero() == 0


def test_the_first_token_keeps_or_loses_its_only_weight():
    model, _, _ = regularized(Rule("attention_weights", Dropout, p=0.5))
    attention = model.blocks[0].attention
    query, key, value = torch.randn(3, 500, 2, 4, 3)
    first = attention.attend(attention, query, key, value)[:, :, 0]
    kept = (first != 0).any(dim=-1)
    torch.testing.assert_close(first[kept], 2 * value[:, :, 0][kept])
    assert 0.4 < kept.float().mean() < 0.6  # over six standard errors


# The compiler looks at `.grad` of what the hooks are given.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_and_eager_attention_agree_where_nothing_is_dropped():
    model, handle, expected = regularized()
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(tokens()), expected)
    handle.set_progress(1.0)
    model.eval()
    torch.testing.assert_close(compiled(tokens()), expected)


def test_a_moving_rate_compiles_the_model_once_and_acts():
    model, handle, expected = regularized()
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    changes = []
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(14):
            handle.set_progress(step / 13)
            changes.append((compiled(tokens()) - expected).abs().mean().item())
    assert counter.frame_count == 1
    assert changes[0] < 1e-5
    assert min(changes[1:]) > 1e-2


def test_compiled_attention_drops_the_share_that_was_set():
    model, _, _ = regularized(Rule("attention_weights", Dropout, p=0.0))
    attention = model.blocks[0].attention
    query, key, value = torch.randn(3, 2000, 2, 4, 3)
    attend = torch.compile(attention.attend, backend="eager")
    for p in (0.0, 0.3, 0.8, 1.0):
        attention.attention_weights_dropout.set_rate(p)
        first = attend(attention, query, key, value)[:, :, 0]
        lost = (first == 0).all(dim=-1).float().mean()
        assert abs(lost - p) < 0.05  # over six standard errors


def test_a_chunk_of_queries_sees_the_keys_before_it_and_none_after():
    hidden = future(2, 5, torch.device("cpu"))
    assert hidden.tolist() == [[False, False, False, False, True], [False] * 5]


def test_the_last_queries_with_all_keys_attend_as_in_the_whole():
    query, key, value = (torch.randn(2, 2, 5, 4) for _ in range(3))
    device = query.device
    whole = weigh(nn.Identity(), query, key, value, scaling=0.5, hidden=future(5, 5, device))
    last = weigh(nn.Identity(), query[:, :, 3:], key, value, scaling=0.5, hidden=future(2, 5, device))
    torch.testing.assert_close(last, whole[:, :, 3:])


def heads(*shape):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(len(shape) + shape[0]))


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": torch.ones(5, 5, dtype=torch.bool).tril(1)},
        {"attn_mask": heads(4, 5, 5)},
        {"enable_gqa": True},
        {"enable_gqa": True, "is_causal": True, "scale": 2.0},
    ],
)
def test_torchs_attention_is_written_out_to_the_same_numbers(words):
    few = 2 if words.get("enable_gqa") else 4
    query, key, value = heads(4, 5, 8), heads(few, 5, 8), heads(few, 5, 3)
    expected = F.scaled_dot_product_attention(query, key, value, **words)
    torch.testing.assert_close(scaled_dot_product(nn.Identity(), query, key, value, **words), expected)
    assert not scaled_dot_product(nn.Dropout(1.0), query, key, value, **words).any()


class OnScores(nn.Module):
    """Halves the scores."""

    acts_on = "scores"

    def forward(self, x):
        return x / 2


def test_a_layer_acts_on_weights_or_scores_between_cap_and_sinks():
    query, key = heads(4, 5, 8), heads(4, 6, 8)
    scores = query @ key.transpose(-2, -1) * 0.3
    hidden = torch.ones(5, 6, dtype=torch.bool).triu(2)
    words = {"scaling": 0.3, "hidden": hidden}
    plain = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    torch.testing.assert_close(attention_weights(nn.Identity(), query, key, **words), plain)
    torch.testing.assert_close(attention_weights(lambda w: w / 2, query, key, **words), plain / 2)
    halved = (scores / 2).masked_fill(hidden, -torch.inf).softmax(-1)
    torch.testing.assert_close(attention_weights(OnScores(), query, key, **words), halved)
    capped = (2 * torch.tanh(scores / 2) + 0.5 * scores).softmax(-1)
    found = attention_weights(nn.Identity(), query, key, scaling=0.3, softcap=2.0, bias=0.5 * scores)
    torch.testing.assert_close(found, capped)
    for sinks in (torch.arange(4.0), torch.arange(4.0).view(1, 4, 1, 1).expand(2, 4, 5, 1)):
        one = torch.arange(4.0).view(1, 4, 1, 1).expand(2, 4, 5, 1)
        expected = torch.cat([scores, one], -1).softmax(-1)[..., :-1]
        torch.testing.assert_close(
            attention_weights(nn.Identity(), query, key, scaling=0.3, sinks=sinks), expected
        )
    nowhere = torch.ones(5, 6, dtype=torch.bool)
    assert not attention_weights(nn.Identity(), query, key, scaling=0.3, hidden=nowhere).any()


class Calling(nn.Module):
    """An attention module of Hugging Face's kind, whose layer leaves the weights."""

    def __init__(self):
        super().__init__()
        self.attention_weights_dropout = nn.Threshold(-1.0, 0.0)


@pytest.mark.parametrize("word", ["sinks", "s_aux"])
def test_the_words_of_the_interface_reach_the_weights(word):
    module, query, key, value = Calling(), heads(4, 5, 8), heads(2, 5, 8), heads(2, 5, 8)
    more = {word: torch.arange(4.0), "softcap": 3.0}
    found, weights = interface_with_layer(None, module, query, key, value, None, **more)
    whole = key.repeat_interleave(2, 1)
    expected = attention_weights(
        nn.Identity(), query, whole, scaling=8**-0.5, sinks=torch.arange(4.0), softcap=3.0
    )
    torch.testing.assert_close(weights, expected)
    result = (expected @ value.repeat_interleave(2, 1)).transpose(1, 2)
    torch.testing.assert_close(found, result)
    scaled, _ = interface_with_layer(None, module, query, key, value, None, scaling=0.1)
    again = attention_weights(nn.Identity(), query, whole, scaling=0.1) @ value.repeat_interleave(2, 1)
    torch.testing.assert_close(scaled, again.transpose(1, 2))


def test_masks_of_the_interface_are_those_that_the_model_means():
    module, query, key = Calling(), heads(4, 5, 8), heads(4, 7, 8)
    value, called = heads(4, 7, 3), []

    def original(*given, **words):
        called.append((given, words))
        return "its own", None

    def weights(mask, function=None, **words):
        return interface_with_layer(function, module, query, key, value, mask, **words)

    seen = torch.ones(2, 1, 5, 9, dtype=torch.bool).tril(1)
    added = torch.zeros(2, 1, 5, 9).masked_fill(~seen, -torch.inf)
    expected = attention_weights(nn.Identity(), query, key, scaling=8**-0.5, hidden=~seen[..., :7])
    for mask in (seen, added):
        torch.testing.assert_close(weights(mask)[1], expected)
    # Eager attention is told by its mask alone; another looks back alone unless it is told otherwise.
    assert weights(None)[1][..., -1].all()
    last = (
        attention_weights(nn.Identity(), query, key, scaling=8**-0.5, hidden=future(5, 7, query.device))
        @ value
    )
    found, none = weights(None, original)
    torch.testing.assert_close(found, last.transpose(1, 2))
    assert none is None
    whole = attention_weights(nn.Identity(), query, key, scaling=8**-0.5) @ value
    torch.testing.assert_close(weights(None, original, is_causal=False)[0], whole.transpose(1, 2))
    module.is_causal = False
    torch.testing.assert_close(weights(None, original)[0], whole.transpose(1, 2))
    bias = heads(4, 5, 7)
    biased = attention_weights(nn.Identity(), query, key, scaling=8**-0.5, bias=bias)
    torch.testing.assert_close(weights(None, position_bias=bias)[1], biased)
    both = attention_weights(
        nn.Identity(), query, key, scaling=8**-0.5, bias=bias.masked_fill(~seen[..., :7], torch.finfo().min)
    )
    torch.testing.assert_close(weights(seen, position_bias=bias)[1], both)
    assert not called
    module.eval()
    module.attention_weights_dropout.eval()
    assert weights(None, original, dropout=0.5, scaling=0.1)[0] == "its own"
    del module.attention_weights_dropout
    weights(seen, original, dropout=0.5, more=3)
    (first, words), (second, others) = called
    assert (words["dropout"], words["scaling"]) == (0.0, 0.1)
    assert others == {"dropout": 0.5, "scaling": None, "more": 3}
    assert first[0] is module and first[1] is query and second[4] is seen
