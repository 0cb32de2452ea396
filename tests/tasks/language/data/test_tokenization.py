import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_dropout.errors import InputError
from transformer_dropout.tasks.language.data import load_tokenizer, make_tokenizer, vocabulary_size
from transformer_dropout.tasks.language.data.tokenization import pieces

_TEXTS = ["The quick brown fox\njumps over the lazy dog.\n" * 3, "naïve café, 東京 🙂\n\n  indented\n" * 3]
_SPECS = ["bytes", "chars", "bpe:300"]


@pytest.fixture(scope="module")
def trained():
    return {spec: make_tokenizer(spec, _TEXTS) for spec in _SPECS}


@settings(deadline=None)
@given(text=st.text())
def test_bytes_round_trip(trained, text):
    ids = trained["bytes"].encode(text)
    assert ids.tolist() == list(text.encode())
    assert trained["bytes"].decode(ids) == text


@settings(deadline=None)
@given(text=st.text(alphabet=st.sampled_from(sorted(set("".join(_TEXTS)) | {"\0"}))))
def test_chars_round_trip(trained, text):
    ids = trained["chars"].encode(text)
    assert len(ids) == len(text)
    assert trained["chars"].decode(ids) == text


@settings(deadline=None)
@given(text=st.text())
def test_chars_turn_only_unseen_characters_into_the_unknown(trained, text):
    known = set("".join(_TEXTS)) | {"\0"}
    expected = "".join(character if character in known else "\ufffd" for character in text)
    assert trained["chars"].decode(trained["chars"].encode(text)) == expected


@settings(deadline=None)
@given(text=st.text())
def test_bpe_round_trip_of_any_text(trained, text):
    assert trained["bpe:300"].decode(trained["bpe:300"].encode(text)) == text


def test_chars_are_sorted_after_the_separator_and_the_unknown():
    tokenizer = make_tokenizer("chars", ["cab", "bad\0"])
    assert tokenizer.vocabulary_size == 6
    assert tokenizer.encode("\0\ufffdabcdz").tolist() == [0, 1, 2, 3, 4, 5, 1]


def test_bpe_merges_what_is_frequent_and_has_the_size_asked_for(trained):
    tokenizer = trained["bpe:300"]
    assert tokenizer.vocabulary_size == 300
    assert len(tokenizer.encode(_TEXTS[0])) < 0.8 * len(_TEXTS[0])
    assert tokenizer.encode("<|endoftext|>").tolist() == [tokenizer.separator_id]
    assert (make_tokenizer("bpe:300", _TEXTS).encode(_TEXTS[1]) == tokenizer.encode(_TEXTS[1])).all()


@pytest.mark.parametrize("spec", _SPECS)
def test_a_saved_tokenizer_comes_back(trained, spec, tmp_path):
    before = trained[spec]
    before.save(tmp_path)
    after = load_tokenizer(tmp_path)
    assert (after.spec, after.vocabulary_size, after.separator_id) == (
        spec,
        before.vocabulary_size,
        before.separator_id,
    )
    text = "quick naïve 🙂 zebra"
    assert (after.encode(text) == before.encode(text)).all()
    assert after.decode(after.encode(text)) == before.decode(before.encode(text))


def test_loading_from_a_folder_without_one(tmp_path):
    with pytest.raises(InputError, match=r"tokenizer_spec\.json cannot be read .*: name a folder that"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("spec", _SPECS)
def test_byte_counts_add_up_to_the_text(trained, spec):
    tokenizer = trained[spec]
    ids = np.append(tokenizer.encode(_TEXTS[1]), tokenizer.separator_id)
    assert tokenizer.byte_counts().shape == (tokenizer.vocabulary_size,)
    assert tokenizer.byte_counts()[ids].sum() == len(_TEXTS[1].encode())


@pytest.mark.parametrize("spec", _SPECS)
def test_ids_fit_an_embedding(trained, spec):
    ids = trained[spec].encode("fox")
    assert ids.dtype == np.int64
    assert ids.min() >= 0 and ids.max() < trained[spec].vocabulary_size


@pytest.fixture(scope="module")
def blanks():
    """An encoding that merges white space, where a careless cut shows."""
    runs = ["".join(run) for length in (2, 3, 4) for run in itertools.product(" \n\t\r", repeat=length)]
    return make_tokenizer("bpe:330", ["a".join(runs)])


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet="as \n\t\r.'1\x1c\xa0", max_size=80), size=st.integers(1, 20))
def test_pieces_give_the_ids_of_the_whole(trained, blanks, text, size):
    cut = list(pieces(text, size))
    assert "".join(cut) == text
    for tokenizer in (blanks, *trained.values()):
        assert (
            np.concatenate([tokenizer.encode(piece) for piece in cut]).tolist()
            == tokenizer.encode(text).tolist()
        )


def test_pieces_are_about_the_size_asked_for():
    text = "a line\n" * 1000
    assert max(len(piece) for piece in pieces(text, 100)) <= 107
    assert len(list(pieces(text, 100))) > 60
    assert list(pieces("", 5)) == [""]


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        ("bytes", 256),
        ("chars", None),
        ("bpe:257", 257),
        ("bpe:8192", 8192),
        ("gpt2", 50_257),
        ("gpt2:/no/folder", 50_257),
    ],
)
def test_the_size_is_known_before_anything_is_read(spec, size):
    assert vocabulary_size(spec) == size


@pytest.mark.parametrize("spec", ["byte", "bites", "gpt3", "chars:5", "bytes:2", "", "llama"])
def test_an_unknown_tokenizer(spec):
    with pytest.raises(
        InputError, match=r"is unknown.*bytes, chars, bpe:N, gpt2, gpt2:FOLDER or gpt2-or-bpe"
    ):
        vocabulary_size(spec)
    with pytest.raises(InputError, match="is unknown"):
        make_tokenizer(spec, _TEXTS)


def test_a_misspelt_tokenizer_gets_the_nearest():
    with pytest.raises(InputError, match=r"Did you mean 'bytes'\?"):
        vocabulary_size("byte")


@pytest.mark.parametrize("spec", ["bpe", "bpe:", "bpe:many", "bpe:-300", "bpe:1e4", "bpe:²"])
def test_a_bpe_without_a_size(spec):
    with pytest.raises(InputError, match="write bpe:N"):
        vocabulary_size(spec)


def test_a_bpe_smaller_than_its_alphabet():
    with pytest.raises(InputError, match=r"too small.*bpe:257 or more"):
        vocabulary_size("bpe:256")


def test_a_bpe_larger_than_the_text_allows_says_how_large_it_can_be():
    with pytest.raises(InputError, match=r"use --set data\.tokenizer=bpe:\d+ or less") as caught:
        make_tokenizer("bpe:5000", ["abab"])
    allowed = str(caught.value).split("data.tokenizer=")[1].split()[0]
    assert f"bpe:{make_tokenizer(allowed, ['abab']).vocabulary_size}" == allowed
