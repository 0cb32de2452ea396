"""What a layer that looks at other tokens is told of the running forward, and its place in the cache."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache, StaticCache

from transformer_dropout.errors import InputError
from transformer_dropout.surgery._sequence import (
    CacheSlot,
    Sequence,
    follow_sequence,
    let_go_of_cache,
    note_arguments,
)

IDS, MASK = torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3)


class Stack(nn.Module):
    """Takes what a stack of blocks takes."""

    def forward(
        self, input_ids=None, attention_mask=None, past_key_values=None, inputs_embeds=None, **kwargs
    ):
        self.during = copy.copy(self.sequence)
        return attention_mask


def noted(*arguments, **keywords):
    sequence = Sequence(cache="an older one", past=9)
    note_arguments(sequence, Stack(), arguments, keywords)
    return sequence


def filled(tokens=4):
    cache = DynamicCache()
    cache.update(torch.zeros(2, 1, tokens, 5), torch.zeros(2, 1, tokens, 5), 0)
    return cache


def test_the_arguments_of_a_forward_are_noted_however_they_are_given():
    cache = filled()
    for sequence in (
        noted(IDS, MASK, cache),
        noted(input_ids=IDS, attention_mask=MASK, past_key_values=cache),
    ):
        assert sequence.padding_mask is MASK and sequence.cache is cache
        assert (sequence.past, sequence.shape) == (4, (2, 3))
    embedded = noted(inputs_embeds=torch.zeros(2, 5, 7), attention_mask=None)
    assert embedded == Sequence(shape=(2, 5))
    assert noted() == Sequence()


def test_keywords_that_a_forward_passes_on_are_noted_too():
    class Wrapped(nn.Module):
        def forward(self, **kwargs):
            pass

    sequence = Sequence()
    note_arguments(sequence, Wrapped(), (), {"input_ids": IDS, "attention_mask": MASK})
    assert sequence.padding_mask is MASK and sequence.shape == (2, 3)


def test_a_mask_of_another_shape_says_nothing_of_padding():
    with pytest.raises(InputError, match=r"attention_mask of shape \(batch, tokens\).*\(2, 1, 3, 3\)"):
        noted(IDS, torch.ones(2, 1, 3, 3))


def test_a_cache_is_let_go_when_the_whole_model_has_run():
    stack = Stack()
    model, sequence = nn.Sequential(nn.Identity(), stack), Sequence()
    stack.sequence, stack.forward = sequence, stack.forward
    hooks = follow_sequence(model, stack, sequence)
    stack(IDS, MASK, filled())
    assert stack.during.past == sequence.past == 4 and sequence.cache is not None
    model(IDS)
    assert sequence.cache is None and sequence.shape == (2, 3)
    sequence.cache = "left"
    with pytest.raises(TypeError):
        model(None, "too many")
    assert sequence.cache is None
    for hook in hooks:
        hook.remove()
    stack(torch.zeros(7, 7))
    assert sequence.shape == (2, 3)
    sequence.cache, sequence.padding_mask = "any", MASK
    assert let_go_of_cache(sequence, model, (), None) is None
    assert sequence.cache is None and sequence.padding_mask is MASK


def test_a_copy_has_run_no_forward_and_stays_one():
    sequence = noted(IDS, MASK, filled())
    first, second = copy.deepcopy((sequence, sequence))
    assert first is second and first is not sequence and first == Sequence()


def test_tokens_come_back_to_their_sequences():
    flat = torch.arange(24.0).view(6, 4)
    sequence = Sequence(shape=(2, 3))
    assert sequence.unflattened(flat).equal(flat.view(2, 3, 4))
    whole = flat.view(2, 3, 4)
    assert sequence.unflattened(whole) is whole and Sequence().unflattened(whole) is whole
    for x in (flat[:5], whole[:, :1], flat.view(2, 3, 2, 2), torch.ones(6)):
        with pytest.raises(InputError, match=r"not the tokens of whole sequences"):
            sequence.unflattened(x)
    with pytest.raises(InputError, match=r"tensors of shape \(6, 4\) here"):
        Sequence().unflattened(flat)


def test_a_slot_lies_behind_those_of_the_model_and_grows():
    cache = DynamicCache()
    slot = CacheSlot(SimpleNamespace(cache=cache, past=0), 1, 2)
    key, value = torch.rand(1, 2, 3, 4), torch.rand(1, 2, 3, 5)
    keys, values = slot.extend(key, value)
    assert keys.equal(key) and values.equal(value) and len(cache.layers) == 4
    assert cache.layers[3].keys.equal(key)
    keys, values = CacheSlot(SimpleNamespace(cache=cache, past=3), 1, 2).extend(key, value)
    assert keys.equal(torch.cat([key, key], -2)) and values.equal(torch.cat([value, value], -2))
    assert len(cache.layers) == 4


def test_of_an_encoder_decoders_cache_it_is_that_of_the_tokens():
    own = DynamicCache()
    slot = CacheSlot(SimpleNamespace(cache=EncoderDecoderCache(own, DynamicCache()), past=0), 0, 1)
    assert slot.cache is own


def test_a_cache_that_does_not_know_the_layer_is_refused():
    key = torch.rand(1, 2, 3, 4)
    with pytest.raises(InputError, match="filled by a forward that did not pass it through this layer"):
        CacheSlot(SimpleNamespace(cache=filled(), past=4), 0, 1).extend(key, key)
    fixed = StaticCache.__new__(StaticCache)
    with pytest.raises(InputError, match="in a DynamicCache, not in a StaticCache"):
        CacheSlot(SimpleNamespace(cache=fixed, past=0), 0, 1).extend(key, key)
