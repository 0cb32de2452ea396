"""YAML 1.2 words, places of keys, and what is refused."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from transformer_dropout.errors import InputError
from transformer_dropout.recipe import Recipe
from transformer_dropout.yaml_file import dump_yaml, parse_value, read_yaml


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


NESTED_ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 20))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (NESTED_ALIASES, "its aliases stand for more than 100,000 values"),
        ("&a [*a]", "an alias stands inside what it stands for"),
        ("[" * 1000 + "]" * 1000, ""),
        ("[" * 60 + "]" * 60, "lie more than 50 deep"),
        ("a: !!int abc", "this is not YAML that can be read"),
        ("a: !!float x", "this is not YAML that can be read"),
        ("a: !!bool x", "this is not YAML that can be read"),
        ("a: !!timestamp 2024-01-01", ":1:4: this is not YAML that can be read (the tag"),
        ("a: !!set {b}", "is none of plain data"),
        ("a: !!binary aGk=", "is none of plain data"),
        ("a: " + "9" * 5000, ":1:4: this is not YAML that can be read (a whole number of more than 64 bits)"),
        ("a: 18446744073709551616", "a whole number of more than 64 bits"),
        ("? [a]\n: b", "this is not YAML that can be read"),
        ("a: '" + "x" * 1_000_000 + "'", "at most 1,000,000 are read"),
    ],
)
def test_what_would_grow_or_is_no_plain_data_is_refused_as_a_config_and_as_a_recipe(tmp_path, text, part):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    for read in (read_yaml, Recipe.from_yaml):
        with pytest.raises(InputError, match=r"^[^\n]{1,200}$") as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert part in str(caught.value)
    with pytest.raises(InputError, match=r"^The recipe[^\n]{1,200}$"):
        Recipe.from_yaml(text)


@pytest.mark.parametrize("text", ["9" * 30, "!!timestamp 2024-01-01", "!unknown x"])
def test_a_value_on_the_command_line_that_is_no_plain_data_is_refused(text):
    with pytest.raises(InputError, match=r"^--set: [^\n]{1,200}$"):
        parse_value(text)


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
@given(st.floats(allow_nan=False) | st.integers(-(2**63), 2**64 - 1) | st.booleans() | st.none())
def test_a_scalar_survives_writing_and_reading(value):
    assert parse_value(dump_yaml([value])) == [value]
