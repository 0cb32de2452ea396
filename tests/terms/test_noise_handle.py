"""Noise at an embedding: its strength over time, the mask around it, and which module embeds."""

import pytest
import torch
from torch import nn

from transformer_dropout.errors import InputError
from transformer_dropout.schedules import Linear, as_schedule
from transformer_dropout.terms._noise_handle import EmbeddingNoiseHandle, input_embedding, is_embedding_of


class Noise(EmbeddingNoiseHandle):
    """Notes its strength, and the mask at each call of the embedding."""

    def __init__(self, schedule):
        super().__init__(as_schedule(schedule))
        self.set_values, self.masks = [], []
        self.set_progress(0.0)

    def _set(self, value):
        self.set_values.append(value)

    def _hook(self, embedding):
        return embedding.register_forward_hook(
            lambda module, given, output: self.masks.append(self._mask_of(given[0].shape))
        )


class Outer(nn.Module):
    """A model with a mask, around one that may take another and one with the embedding's weight."""

    def __init__(self):
        super().__init__()
        self.embedding, self.other = nn.Embedding(7, 3), nn.Embedding(7, 3)
        self.tied = nn.Embedding(7, 3)
        self.tied.weight = self.embedding.weight
        self.inner = Inner(self.embedding)
        self.fails = False

    def forward(self, ids, attention_mask=None, inner=None):
        out = self.embedding(ids) + self.tied(ids) + self.other(ids)
        if inner is not None:
            self.inner(ids, inner)
        if self.fails:
            raise RuntimeError("in the middle")
        return out + self.embedding(ids)


class Inner(nn.Module):
    def __init__(self, embedding):
        super().__init__()
        self.embedding = embedding

    def forward(self, ids, attention_mask):
        return self.embedding(ids)


IDS, MASK = torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3)


def placed():
    model, noise = Outer(), Noise(0.5)
    noise.place(model, model.embedding)
    return model, noise


def test_a_strength_follows_its_schedule_and_comes_back_after_a_time_without():
    noise = Noise(Linear(0.0, 1.0))
    noise.set_progress(0.25)
    with noise.off():
        assert noise.set_values == [0.0, 0.25, 0.0]
    with pytest.raises(KeyError), noise.off():
        raise KeyError
    assert noise.set_values == [0.0, 0.25, 0.0, 0.25, 0.0, 0.25]
    with pytest.raises(InputError, match=r"progress is 1\.5"):
        noise.set_progress(1.5)


@pytest.mark.parametrize("given", [((IDS, MASK), {}), ((IDS,), {"attention_mask": MASK})])
def test_the_embedding_and_what_is_tied_to_it_know_the_mask_around_them(given):
    model, noise = placed()
    model(*given[0], **given[1])
    assert len(noise.masks) == 3 and all(mask is MASK for mask in noise.masks)
    assert noise._masks == []


def test_the_innermost_mask_counts_and_goes_with_the_module_that_was_given_it():
    model, noise = placed()
    other = torch.zeros(2, 3)
    model(IDS, MASK, other)
    assert [mask is MASK for mask in noise.masks] == [True, True, False, True]
    assert noise.masks[2] is other
    noise.masks.clear()
    model(IDS)
    assert noise.masks == [None] * 3


@pytest.mark.parametrize("mask", [torch.ones(2, 1, 3, 3), torch.ones(3), "causal"])
def test_a_mask_in_another_form_says_nothing(mask):
    model, noise = placed()
    model(IDS, mask)
    assert noise.masks == [None] * 3


def test_a_forward_that_fails_leaves_no_mask_behind():
    model, noise = placed()
    model.fails = True
    with pytest.raises(RuntimeError):
        model(IDS, MASK)
    assert noise._masks == []
    noise._leave(model, (), None)
    model.fails = False
    model.embedding(IDS)
    assert noise.masks[-1] is None


def test_noise_is_taken_out_once():
    model, noise = placed()
    noise.remove()
    model(IDS, MASK)
    assert noise.masks == []
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(InputError, match="removed already"):
        noise.remove()


def test_an_embedding_with_this_very_weight_is_told_from_others():
    model = Outer()
    weight = model.embedding.weight
    head = nn.Linear(3, 7, bias=False)
    head.weight = weight
    assert [is_embedding_of(m, weight) for m in (model.embedding, model.tied, model.other, head)] == [
        *(True, True, False, False)
    ]


def test_the_input_embedding_is_the_one_that_is_named_or_the_models_own_or_the_only_one():
    model = Outer()
    assert input_embedding(model, "other") is model.other
    assert input_embedding(model, "inner") is model.inner
    assert input_embedding(nn.Sequential(model.other, nn.Linear(2, 2)), None) is model.other
    model.get_input_embeddings = lambda: model.tied
    assert input_embedding(model, None) is model.tied
    single = nn.Sequential(model.other)
    single.get_input_embeddings = lambda: None
    assert input_embedding(single, None) is model.other


@pytest.mark.parametrize(
    ("model", "path", "sentence"),
    [
        (Outer(), None, r"one of: embedding, other"),
        (nn.Linear(2, 2), None, "one of: none is an nn.Embedding"),
        (Outer(), "othr", r"embedding is 'othr', which is no module\..*'other'"),
    ],
)
def test_where_it_is_not_clear_it_is_asked_for(model, path, sentence):
    with pytest.raises(InputError, match=sentence):
        input_embedding(model, path)
