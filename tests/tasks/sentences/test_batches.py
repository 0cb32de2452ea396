"""Batches: what the order of the data depends on, and how it is padded."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from transformer_dropout.tasks.sentences.batches import batch_indices, encode, steps_per_epoch
from transformer_dropout.tasks.sentences.pretrained import load_tokenizer
from transformer_dropout.tasks.sentences.sentences import Sentence

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=150)


@given(LENGTHS, st.integers(1, 12), st.integers(0, 3), st.integers(0, 5))
def test_an_epoch_sees_every_sentence_once(lengths, batch, epoch, seed):
    per_epoch = steps_per_epoch(len(lengths), batch)
    steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
    seen = [batch_indices(lengths, batch, step, seed) for step in steps]
    assert sorted(index for indices in seen for index in indices) == list(range(len(lengths)))
    assert sum(len(indices) == batch for indices in seen) == len(lengths) // batch


def test_the_order_depends_on_seed_and_epoch_alone():
    lengths = [5 + n % 7 for n in range(100)]
    torch.manual_seed(1)
    first = batch_indices(lengths, 32, 0, 5)
    torch.manual_seed(2)
    assert batch_indices(lengths, 32, 0, 5) == first
    assert batch_indices(lengths, 32, 4, 5) != first
    assert batch_indices(lengths, 32, 0, 6) != first


def test_a_batch_holds_sentences_of_similar_length_and_no_epoch_begins_with_the_short_ones():
    lengths = [n % 64 for n in range(512)]
    spans = []
    for epoch in range(50):
        own = [lengths[index] for index in batch_indices(lengths, 16, epoch * 32, 0)]
        spans.append((min(own), max(own)))
    assert max(high - low for low, high in spans) < 24
    assert min(low for low, _ in spans) < 8
    assert max(low for low, _ in spans) > 40


def test_a_batch_is_padded_to_its_longest_sentence(model_dir):
    texts = ["the film is dull", "the plot is warm and the film warm", "dull"]
    sentences = [Sentence(text=text, label=n % 2) for n, text in enumerate(texts)]
    tokenizer = load_tokenizer(model_dir)
    encoded = encode(sentences, tokenizer, 8)
    batch = encoded.batch([2, 0])
    assert batch.inputs["input_ids"].shape == (2, 6)
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]
    assert batch.inputs["input_ids"][0, 3:].tolist() == [0, 0, 0]
    assert (batch.labels.tolist(), batch.tokens) == ([0, 0], 9)
    assert list(map(len, encoded.ids)) == [6, 8, 3]
    assert encoded.by_length() == [[2, 0, 1]]
    tokenizer.padding_side = "left"
    assert (
        encode(sentences, tokenizer, 8).batch([2, 0]).inputs["attention_mask"][0].tolist()
        == [0] * 3 + [1] * 3
    )


def test_a_probe_is_spread_over_the_sentences(model_dir):
    sentences = [Sentence(text="the film", label=n) for n in range(10)]
    encoded = encode(sentences, load_tokenizer(model_dir), 8)
    assert encoded.probe(5).labels == [0, 2, 4, 6, 8]
    assert encoded.probe(99).labels == encoded.labels
