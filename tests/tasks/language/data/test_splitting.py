import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_dropout.errors import InputError
from transformer_dropout.tasks.language.data import Document, split_documents


def _documents(count, **kwargs):
    return [Document(f"file-{number}.txt", f"text {number}", **kwargs) for number in range(count)]


@settings(deadline=None)
@given(st.permutations(range(30)), st.sampled_from([0.2, 0.5, 0.8]))
def test_every_document_lands_once_wherever_it_stood(order, fraction):
    documents = _documents(30)
    train, validation = split_documents([documents[index] for index in order], fraction)
    assert (train, validation) == split_documents(documents, fraction)
    assert sorted(train + validation, key=lambda d: d.name) == sorted(documents, key=lambda d: d.name)


def test_the_rule_is_the_hash_of_the_name():
    def fraction(document):
        return int(hashlib.sha256(document.name.encode()).hexdigest(), 16) / 2**256

    documents = _documents(200)
    train, validation = split_documents(documents, 0.25)
    assert set(validation) == {document for document in documents if fraction(document) < 0.25}
    assert 30 < len(validation) < 70
    for split in (train, validation):
        assert split == sorted(split, key=fraction)
        assert split != sorted(split, key=lambda document: document.name)


def test_more_documents_move_none_of_the_others():
    few, many = split_documents(_documents(50), 0.3)[1], split_documents(_documents(100), 0.3)[1]
    assert set(few) == set(many) & set(_documents(50))


def test_a_given_split_keeps_its_order():
    documents = _documents(9, split="train") + _documents(4, split="validation")
    assert split_documents(documents, 0.9) == (documents[:9], documents[9:])


@settings(deadline=None)
@given(st.text(min_size=2), st.floats(0.05, 0.95))
def test_a_single_text_is_cut_once(text, fraction):
    try:
        train, validation = split_documents([Document("book", text)], fraction)
    except InputError:
        assert len(text) < 20  # rounding left one side nothing
    else:
        assert train[0].text + validation[0].text == text


def test_a_single_text_is_cut_at_a_line_end_near_the_fraction():
    text = "".join(f"line {number}\n" for number in range(5000))
    train, validation = split_documents([Document("book", text)], 0.1)
    assert train[0].text.endswith("\n")
    assert validation[0].text.startswith("line ")
    assert len(validation[0].text) / len(text) == pytest.approx(0.1, abs=0.001)
    assert train[0].name != validation[0].name


def test_a_single_text_without_a_near_line_end_is_cut_exactly():
    text = "\n" + "x" * 9999
    train, validation = split_documents([Document("book", text)], 0.25)
    assert (len(train[0].text), len(validation[0].text)) == (7500, 2500)


@pytest.mark.parametrize(("fraction", "empty"), [(1e-9, "validation"), (1 - 1e-9, "training")])
def test_an_empty_split_is_an_error(fraction, empty):
    with pytest.raises(InputError, match=rf"The {empty} split of 20 document\(s\) is empty") as caught:
        split_documents(_documents(20), fraction)
    advised = float(str(caught.value).split("data.validation_fraction=")[1])
    sizes = [len(split) for split in split_documents(_documents(20), advised)]
    assert sorted(sizes) == [1, 19]


def test_a_given_split_without_documents_is_an_error():
    with pytest.raises(InputError, match=r"The validation split of 3 .* is empty: give more text$"):
        split_documents(_documents(3, split="train"), 0.5)


def test_a_text_too_short_to_cut_is_an_error():
    with pytest.raises(InputError, match=r"is empty: give more text$"):
        split_documents([Document("one", "x")], 0.5)
