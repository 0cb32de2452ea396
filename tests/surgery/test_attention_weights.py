"""Dropping attention weights in the decoder: eager through the fused kernel, compiled by hand."""

import pytest
import torch
from torch import nn

from transformer_dropout.layers import Dropout
from transformer_dropout.recipe import Recipe, Rule
from transformer_dropout.schedules import Linear
from transformer_dropout.surgery._attention import future, weigh
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
