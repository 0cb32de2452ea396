import pytest

from transformer_dropout.errors import InputError
from transformer_dropout.tasks.language.data.cache_entries import is_sound, publish, write_manifest


def _write(entry, text="tokens"):
    with publish(entry) as folder:
        (folder / "train.bin").write_text(text)
        write_manifest(folder, {"source": "x"})


def test_an_entry_appears_whole_and_alone(tmp_path):
    entry = tmp_path / "new" / "cache" / "key"
    with publish(entry) as folder:
        (folder / "train.bin").write_text("tokens")
        assert not entry.exists()
        write_manifest(folder, {"source": "x"})
    assert is_sound(entry)
    assert [path.name for path in entry.parent.iterdir()] == ["key"]


def test_nothing_appears_after_an_exception(tmp_path):
    with pytest.raises(KeyboardInterrupt), publish(tmp_path / "key") as folder:
        (folder / "train.bin").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_stays(tmp_path):
    entry = tmp_path / "key"
    with publish(entry) as folder:
        _write(entry, "first.")
        (folder / "train.bin").write_text("second")
        write_manifest(folder, {"source": "x"})
    assert (entry / "train.bin").read_text() == "first."
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def flip_one_bit(entry):
    """Damage a file that keeps its size."""
    content = bytearray((entry / "train.bin").read_bytes())
    content[-1] ^= 1
    (entry / "train.bin").write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "train.bin").write_text("tok"),
        lambda entry: (entry / "train.bin").unlink(),
        flip_one_bit,
        lambda entry: (entry / "manifest.json").unlink(),
        lambda entry: (entry / "manifest.json").write_text("{"),
        lambda entry: (entry / "manifest.json").write_text("{}"),
        lambda entry: (entry / "manifest.json").write_text("[]"),
    ],
)
def test_a_damaged_entry_is_seen_and_replaced(tmp_path, damage):
    entry = tmp_path / "key"
    _write(entry)
    assert is_sound(entry)
    damage(entry)
    assert not is_sound(entry)
    _write(entry, "again")
    assert is_sound(entry)
    assert (entry / "train.bin").read_text() == "again"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_what_cannot_be_renamed_is_told(tmp_path, monkeypatch):
    def rename(self, target):
        raise PermissionError("read-only")

    monkeypatch.setattr("pathlib.Path.rename", rename)
    with pytest.raises(InputError, match=f"^Prepared data cannot be kept in {tmp_path}: read-only; "):
        _write(tmp_path / "key")
