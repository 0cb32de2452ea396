"""What a comparison is told by, and where a machine that does not see its folder keeps the runs."""

import json

import pytest

from transformer_dropout.compare.engines.folders import folder_id, own_folder


@pytest.mark.parametrize(
    ("text", "found"), [('{"id": "abc"}', "abc"), ('{"id": 7}', "7"), ("{}", ""), ("{", ""), (None, "")]
)
def test_a_comparison_is_told_by_its_id_where_one_is_seen(tmp_path, text, found):
    if text is not None:
        (tmp_path / "comparison.json").write_text(text)
    assert folder_id(tmp_path) == found


def test_a_name_in_another_alphabet_is_read(tmp_path):
    (tmp_path / "comparison.json").write_bytes(json.dumps({"id": "é"}, ensure_ascii=False).encode())
    assert folder_id(tmp_path) == "é"


def test_runs_of_another_folder_lie_in_the_users_cache(cache):
    assert own_folder("abc") == cache / "transformer-dropout" / "runs" / "abc"
