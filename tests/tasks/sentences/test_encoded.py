"""Batches of sentences: what their order depends on, and how they are padded."""

from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_dropout.tasks._pretrained import load_tokenizer
from transformer_dropout.tasks.sentences.encoded import by_length, encode, grouped_order
from transformer_dropout.tasks.sentences.examples import Sentence

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=150)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 12), st.integers(0, 3), st.integers(0, 5))
def test_an_epoch_sees_every_sentence_once(lengths, batch, epoch, seed):
    order = grouped_order(lengths, batch, seed, epoch).tolist()
    assert sorted(order) == list(range(len(lengths)))


def test_the_order_depends_on_seed_and_epoch():
    lengths = [5 + n % 7 for n in range(100)]
    orders = {tuple(grouped_order(lengths, 32, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_a_batch_holds_sentences_of_similar_length_and_no_epoch_begins_with_the_short_ones():
    lengths = [n % 64 for n in range(512)]
    spans = []
    for epoch in range(50):
        own = [lengths[index] for index in grouped_order(lengths, 16, 0, epoch)[:16]]
        spans.append((min(own), max(own)))
    assert max(high - low for low, high in spans) < 24
    assert min(low for low, _ in spans) < 8
    assert max(low for low, _ in spans) > 40


def test_a_batch_is_padded_to_its_longest_sentence(model_dir):
    texts = ["the film is dull", "the plot is warm and the film warm", "dull"]
    sentences = [Sentence(text=text, label=n % 2) for n, text in enumerate(texts)]
    tokenizer = load_tokenizer(model_dir)
    encoded = encode(sentences, tokenizer, 8)
    inputs, labels = encoded.padded([2, 0])
    assert inputs["input_ids"].shape == (2, 6)
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]
    assert inputs["input_ids"][0, 3:].tolist() == [0, 0, 0]
    assert labels.tolist() == [0, 0]
    assert encoded.lengths == [6, 8, 3]
    assert by_length(encoded).lengths == [3, 6, 8]
    assert by_length(encoded).labels == [0, 0, 1]
    tokenizer.padding_side = "left"
    left, _ = encode(sentences, tokenizer, 8).padded([2, 0])
    assert left["attention_mask"][0].tolist() == [0] * 3 + [1] * 3
