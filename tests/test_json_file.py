"""An object, or one sentence."""

import pytest

from transformer_dropout.errors import InputError
from transformer_dropout.json_file import read_object


def test_an_object_is_returned(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, "é"]}', encoding="utf-8")
    assert read_object(path, hint="") == {"a": [1, "é"]}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "is not valid JSON"),
        (b'{"a": 1', "is not valid JSON"),
        (b'{"a": "\xff"}', "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"9" * 5_000, "is not valid JSON"),
        (b"[1]", "is not a JSON object"),
        (None, "cannot be read (no such file or directory)"),
    ],
)
def test_anything_else_is_one_sentence(tmp_path, content, part):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_object(path, hint="copy it again")
    assert str(caught.value) == f"{path} {part}: copy it again."
