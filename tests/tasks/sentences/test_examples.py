"""Splits are disjoint, keep duplicates together, and do not move when sentences are added."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer_dropout.errors import InputError
from transformer_dropout.tasks.sentences.examples import (
    Sentence,
    balanced_subset,
    digest,
    place,
    prepared_splits,
    read_sentences,
    split,
)

TEXTS = st.text(alphabet="aB é.", min_size=1, max_size=6)
SENTENCES = st.lists(st.builds(Sentence, text=TEXTS, label=st.integers(0, 2)), max_size=60)


@given(SENTENCES)
def test_every_sentence_is_in_one_split_and_duplicates_are_in_the_same(sentences):
    parts = vars(split(sentences)).values()
    assert Counter(s for part in parts for s in part) == Counter(sentences)
    words = [{" ".join(s.text.casefold().split()) for s in part} for part in parts]
    assert sum(map(len, words)) == len(set.union(*words))


@given(SENTENCES, SENTENCES)
def test_more_sentences_do_not_move_those_that_were_there(few, more):
    before, after = split(few), split([*few, *more])
    for name, part in vars(before).items():
        assert not Counter(part) - Counter(getattr(after, name))


@given(SENTENCES, st.integers(0, 30), st.integers(0, 30))
def test_a_subset_is_balanced_and_holds_every_smaller_one(sentences, first, second):
    classes, (small, large) = ("a", "b", "c"), sorted((first, second))
    enough = min(Counter(s.label for s in sentences)[label] for label in range(3))
    if enough * 3 < large:
        with pytest.raises(InputError, match="or less"):
            balanced_subset(sentences, enough * 3 + 3, classes)
        return
    chosen = balanced_subset(sentences, large, classes)
    counts = [Counter(s.label for s in chosen)[label] for label in range(3)]
    assert len(chosen) == large
    assert max(counts) - min(counts) <= 1
    assert not Counter(balanced_subset(sentences, small, classes)) - Counter(chosen)
    assert Counter(balanced_subset(sentences[::-1], large, classes)) == Counter(chosen)


def test_the_hash_never_changes():
    assert place("A fine  film") == place("a fine film")
    assert place("a fine film") == 0.7295961973996228
    shares = [place(f"sentence {n}") for n in range(2000)]
    assert 0.77 < sum(share < 0.8 for share in shares) / 2000 < 0.83


def test_reading_keeps_what_only_looks_like_a_line_end(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("one\x85 line \n\n", encoding="utf-8")
    b.write_text("two\r\n", encoding="utf-8")
    assert [(s.text, s.label) for s in read_sentences({"a": a, "b": b})] == [("one\x85 line", 0), ("two", 1)]


def test_the_digest_tells_sentences_and_classes_apart(class_paths):
    splits = prepared_splits(class_paths, 24)
    other = [Sentence(text=s.text, label=1 - s.label) for s in splits.train]
    assert len({digest(splits.train), digest(splits.test), digest(other)}) == 3
    assert digest(splits.train) == digest(prepared_splits(class_paths, 24).train)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: no such file"),
        (b"\n \n", "holds no sentence"),
        ("caf\u00e9".encode("latin1"), r"is not UTF-8 \(byte 3\); convert it with: iconv"),
        (b"only one\n", "has no sentence in the"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, class_paths, content, message):
    path = tmp_path / "other.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        prepared_splits(class_paths | {"other": path}, None)
    assert "lass other" in str(raised.value)


def test_two_classes_of_the_same_sentences_are_refused(class_paths):
    (name, path), (other, _) = class_paths.items()
    with pytest.raises(InputError, match=f"Classes {name} and {other} hold the same sentences"):
        read_sentences({name: path, other: path})


def test_one_class_is_refused(class_paths):
    with pytest.raises(InputError, match="at least two classes, and there are 1"):
        prepared_splits({"neg": class_paths["neg"]}, None)
