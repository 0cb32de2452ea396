"""The boundary: what a file of ours must hold, whatever has happened to it, and what never passes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer_dropout.compare.record_files import RunFile, printable, read_file, read_rows
from transformer_dropout.errors import InputError

WHOLE = {
    "name": "a",
    "seed": 1,
    "status": "finished",
    "data": {"train": {"tokens": 5}},
    "result": {"val_loss": 1.0},
}


def read(path):
    return read_file(path, RunFile, hint="run the arm again")


def test_a_whole_file_is_returned_as_it_was_written(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(WHOLE | {"anything": [1, {"else": None}], "flops": None}))
    assert read(path) == WHOLE | {"anything": [1, {"else": None}], "flops": None}


def test_a_weight_decay_may_be_a_schedule_or_none(tmp_path):
    path = tmp_path / "run.json"
    for decay in (0.1, None, "0,0.1", {"linear": {"start": 0.0, "end": 0.1}}):
        record = WHOLE | {"config": {"training": {"weight_decay": decay}}}
        path.write_text(json.dumps(record))
        assert read(path) == record


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"seed": "1"}, "seed"),
        ({"seed": True}, "seed"),
        ({"name": None}, "name"),
        ({"status": 3}, "status"),
        ({"result": [1]}, "result"),
        ({"data": {"train": 5}}, "data.train"),
        ({"config": {"training": "fast"}}, "config.training"),
        ({"config": {"training": {"weight_decay": "fast"}}}, "config.training"),
        ({"alarms": "mask collapse"}, "alarms"),
        ({"notes": [1]}, "notes.0"),
        ({"task": {"name": "x", "item": "y", "metrics": [{}]}}, "task.metrics.0.name"),
        ({"checks": {"paired_start": "yes"}}, "checks.paired_start"),
    ],
)
def test_one_sentence_names_what_is_damaged(tmp_path, change, place):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(WHOLE | change))
    with pytest.raises(InputError, match=rf"run.json is damaged \({place}: .*\): run the arm again"):
        read(path)


@pytest.mark.parametrize("text", ["", "{", "nul", "[" * 100_000, '"\\ud800', b"\xff\xfe"])
def test_what_is_no_json_is_refused(tmp_path, text):
    path = tmp_path / "run.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match="run the arm again"):
        read(path)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_whatever_is_in_a_file_it_is_read_or_refused_in_one_sentence(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "run.json"
    path.write_text(json.dumps(WHOLE | {"config": data, "alarms": data, "data": data}))
    try:
        read(path)
    except InputError as error:
        assert "\n" not in str(error)


@given(st.text(st.characters(exclude_categories=()), max_size=30))
def test_printable_text_can_be_written_and_obeys_nothing(text):
    shown = printable({text: [text]})
    for found in (next(iter(shown)), next(iter(shown.values()))[0]):
        found.encode("utf-8")
        assert not any((ord(c) < 32 and c not in "\n\t") or c in "\x7f\x9b\u202e\u2028" for c in found)


def test_letters_of_all_scripts_stay():
    assert printable("Überblick 漢字 – “α” 🙂") == "Überblick 漢字 – “α” 🙂"
    assert printable("a\x1b]0;b\x07") == "a\\x1b]0;b\\x07"


def test_a_row_without_a_step_is_refused_and_a_half_last_one_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5}\n{"step": 3}\n{"step"')
    assert [row["step"] for row in read_rows(path)] == [3, 5]
    for line in ("[1]", '{"step": "1"}', '{"step": -1}', '{"step": true}'):
        path.write_text(f'{line}\n{{"step": 3}}\n')
        with pytest.raises(InputError, match=r"metrics.jsonl:1 is not a row"):
            read_rows(path)
    assert read_rows(tmp_path / "none.jsonl") == []
