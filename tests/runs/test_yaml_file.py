"""YAML 1.2 words, places of keys, and what is refused."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from transformer_dropout.errors import InputError
from transformer_dropout.runs.yaml_file import dump_yaml, parse_value, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("9e-4", 9e-4),
        ("1E+3", 1000.0),
        (".5", 0.5),
        ("7", 7),
        ("-3", -3),
        ("010", 10),
        ("007", 7),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
    ],
)
def test_numbers_and_truths_follow_yaml_1_2(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["on", "off", "yes", "no", "y", "N", "1_000", "0x10", "1:30", "2024-01-01"])
def test_words_of_yaml_1_1_stay_text(text):
    assert parse_value(text) == text


def test_not_a_number_and_infinity_read_as_numbers():
    assert parse_value(".nan") != parse_value(".nan")
    assert parse_value("-.inf") == -float("inf")


def test_a_flow_collection_is_a_value():
    assert parse_value("[0, {p: 1e-1}]") == [0, {"p": 0.1}]


def test_what_is_no_yaml_stays_text_on_the_command_line():
    assert parse_value("[1") == "[1"


def test_every_key_and_item_has_its_place(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("model:\n  width: 8\nrecipe:\n  - {p: 0.1}\n")
    file = read_yaml(path)
    assert file.data == {"model": {"width": 8}, "recipe": [{"p": 0.1}]}
    assert file.places["model", "width"] == f"{path}:2:3"
    assert file.places["recipe", 0] == f"{path}:4:5"
    assert file.places["recipe", 0, "p"] == f"{path}:4:6"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"a: 1\nb:\n  c: 1\n  c: 2\n", ":4:3: the key 'c' stands here twice"),
        (b"a: [1\n", ":2:1: this is not YAML"),
        (b"a: !!python/object/apply:os.system [x]\n", ":1:4: this is not YAML"),
        (b"a: caf\xe9\n", "is not UTF-8 text (byte 6)"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path, content, part):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^[^\n]*$") as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)
    assert part in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="There is no file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="is a folder"):
        read_yaml(tmp_path)


def test_an_empty_file_holds_nothing(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("# only a comment\n")
    assert read_yaml(path).data is None


@settings(deadline=None)
@example("\x85")
@given(st.one_of(st.text(), st.sampled_from(["9e-4", "08", "on", "1.", "~", "null", "0x1", "-.inf", "1e3"])))
def test_a_text_survives_writing_and_reading(text):
    assert parse_value(dump_yaml({"name": text})) == {"name": text}


@settings(deadline=None)
@given(st.floats(allow_nan=False) | st.integers() | st.booleans() | st.none())
def test_a_scalar_survives_writing_and_reading(value):
    assert parse_value(dump_yaml([value])) == [value]
