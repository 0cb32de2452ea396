import hashlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from transformer_dropout.errors import InputError
from transformer_dropout.tasks.language.data import DataConfig, default_cache, prepare

_CHILD = """
import sys, time
from pathlib import Path
from transformer_dropout.tasks.language.data import DataConfig, prepare
source, cache, gate, name = sys.argv[1:]
rename = Path.rename
def rename_together(path, target):
    Path(gate, name).touch()
    while len(list(Path(gate).iterdir())) < 2:
        time.sleep(0.001)
    return rename(path, target)
Path.rename = rename_together
data = prepare(DataConfig(source=source, tokenizer="bpe:350"), Path(cache))
print(data.manifest["splits"]["train"]["sha256"], len(data.train))
"""

_KILLED = """
import os, pathlib, signal, sys
from transformer_dropout.tasks.language.data import DataConfig, prepare
pathlib.Path.rename = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
prepare(DataConfig(source=sys.argv[1]), pathlib.Path(sys.argv[2]))
"""


@pytest.fixture
def unbuilt(monkeypatch):
    """Fails a test that builds an entry although a sound one is there."""
    monkeypatch.setattr(
        "transformer_dropout.tasks.language.data.prepared._build", lambda *args: pytest.fail("built again")
    )


def test_the_tokens_are_the_documents_with_separators(notes, tmp_path):
    data = prepare(DataConfig(source=str(notes), validation_fraction=0.3), tmp_path / "cache")
    found = []
    for split in (data.train, data.validation):
        assert split.dtype == np.uint16
        assert split[-1] == 0
        found += data.tokenizer.decode(split).split("\0")[:-1]
    assert Counter(found) == Counter(file.read_text() for file in notes.rglob("page-*"))


@pytest.mark.parametrize("tokenizer", ["bytes", "chars", "bpe:300"])
def test_the_manifest_says_what_is_in_use(notes, tmp_path, tokenizer):
    data = prepare(DataConfig(source=str(notes), tokenizer=tokenizer), tmp_path)
    manifest = data.manifest
    assert json.loads(json.dumps(manifest)) == manifest
    assert (manifest["source"], manifest["tokenizer"]) == (str(notes), tokenizer)
    assert manifest["vocabulary_size"] == data.tokenizer.vocabulary_size
    assert manifest["dtype"] == "uint16"
    texts = [file.read_bytes() for file in notes.rglob("page-*")]
    counts = manifest["splits"]
    assert counts["train"]["documents"] + counts["validation"]["documents"] == len(texts)
    assert counts["train"]["bytes"] + counts["validation"]["bytes"] == sum(map(len, texts))
    for name in ("train", "validation"):
        tokens = getattr(data, name)
        assert counts[name]["tokens"] == len(tokens)
        assert counts[name]["sha256"] == hashlib.sha256(tokens.tobytes()).hexdigest()


def test_tokens_are_mapped_and_cannot_be_written(notes, tmp_path):
    data = prepare(DataConfig(source=str(notes)), tmp_path)
    assert isinstance(data.train, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        data.train[0] = 1


def test_limits_are_views_with_their_own_counts(notes, tmp_path, request):
    whole = prepare(DataConfig(source=str(notes)), tmp_path)
    request.getfixturevalue("unbuilt")
    part = prepare(DataConfig(source=str(notes), train_tokens=1000, validation_tokens=50), tmp_path)
    assert part.train.tolist() == whole.train[:1000].tolist()
    assert part.validation.tolist() == whole.validation[:50].tolist()
    counts = part.manifest["splits"]["train"]
    separators = int((part.train == 0).sum())
    assert counts["tokens"] == 1000
    assert counts["bytes"] == 1000 - separators
    assert counts["documents"] == separators + 1
    assert counts["sha256"] == hashlib.sha256(part.train.tobytes()).hexdigest()
    assert counts["sha256"] != whole.manifest["splits"]["train"]["sha256"]


@pytest.mark.parametrize("name", ["train", "validation"])
def test_a_limit_beyond_the_text_says_how_much_there_is(notes, tmp_path, name):
    available = len(getattr(prepare(DataConfig(source=str(notes)), tmp_path), name))
    with pytest.raises(InputError, match=f"split has {available} tokens: .*{name}_tokens={available}"):
        prepare(DataConfig(source=str(notes), **{f"{name}_tokens": available + 1}), tmp_path)
    whole = prepare(DataConfig(source=str(notes), **{f"{name}_tokens": available}), tmp_path)
    assert len(getattr(whole, name)) == available


def test_the_cache_is_found_again_by_content(tmp_path, request):
    (tmp_path / "a.txt").write_text("line\n" * 500)
    (tmp_path / "b.txt").write_text("line\n" * 500)
    first = prepare(DataConfig(source=str(tmp_path / "a.txt")), tmp_path / "cache")
    request.getfixturevalue("unbuilt")
    second = prepare(DataConfig(source=str(tmp_path / "b.txt")), tmp_path / "cache")
    assert second.manifest["splits"] == first.manifest["splits"]
    assert second.manifest["source"] == str(tmp_path / "b.txt")


def test_other_content_tokenizer_or_fraction_is_another_entry(notes, tmp_path):
    cache = tmp_path / "cache"
    prepare(DataConfig(source=str(notes)), cache)
    prepare(DataConfig(source=str(notes), tokenizer="chars"), cache)
    prepare(DataConfig(source=str(notes), validation_fraction=0.4), cache)
    (notes / "more.txt").write_text("more\n")
    prepare(DataConfig(source=str(notes)), cache)
    assert len(list(cache.iterdir())) == 4


def test_changed_files_of_a_tokenizer_folder_are_another_entry(notes, tmp_path, gpt2_folder):
    config = DataConfig(source=str(notes), tokenizer=f"gpt2:{tmp_path / 'gpt2'}")
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "vocab.json").write_bytes((gpt2_folder / "vocab.json").read_bytes())
    merges = tmp_path / "gpt2" / "merges.txt"
    merges.write_text("#version: 0.2\nh e\n")
    before = prepare(config, tmp_path / "cache")
    merges.write_text("#version: 0.2\n")
    after = prepare(config, tmp_path / "cache")
    assert len(after.train) > len(before.train)
    assert before.manifest["dtype"] == "uint16"


def test_a_vocabulary_beyond_two_bytes_is_stored_in_four(tmp_path):
    characters = "".join(map(chr, range(0x20000, 0x20000 + 70_000)))
    (tmp_path / "many.txt").write_text(characters + "x" * 10_000, encoding="utf-8")
    data = prepare(DataConfig(source=str(tmp_path / "many.txt"), tokenizer="chars"), tmp_path / "cache")
    assert data.manifest["dtype"] == "uint32"
    assert data.tokenizer.decode(data.train[:70_000]) == characters


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_a_damaged_entry_is_built_again(notes, tmp_path, damage):
    cache = tmp_path / "cache"
    first = prepare(DataConfig(source=str(notes)), cache).manifest
    (entry,) = cache.iterdir()
    if damage is None:
        (entry / "manifest.json").unlink()
    else:
        (entry / "train.bin").write_bytes(damage)
    assert prepare(DataConfig(source=str(notes)), cache).manifest == first
    assert list(cache.iterdir()) == [entry]


def test_two_processes_at_once(notes, tmp_path):
    gate, cache = tmp_path / "gate", tmp_path / "cache"
    gate.mkdir()
    children = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", _CHILD, str(notes), str(cache), str(gate), name],
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    said = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert said[0] == said[1] != ""
    (entry,) = cache.iterdir()
    here = prepare(DataConfig(source=str(notes), tokenizer="bpe:350"), cache)
    assert said[0].split()[0] == here.manifest["splits"]["train"]["sha256"]
    assert list(cache.iterdir()) == [entry]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_process_killed_midway_leaves_nothing_that_is_read(notes, tmp_path):
    cache = tmp_path / "cache"
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(notes), str(cache)], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    (left,) = cache.iterdir()
    assert left.suffix == ".tmp"
    data = prepare(DataConfig(source=str(notes)), cache)
    assert len(data.train) > 1000
    assert len([entry for entry in cache.iterdir() if entry.suffix != ".tmp"]) == 1


def test_the_standard_library_comes_from_the_cache_unparsed(stdlib_docs, stdlib_cache, monkeypatch):
    monkeypatch.setattr("ast.parse", lambda *args: pytest.fail("parsed"))
    again = prepare(DataConfig(source="stdlib-docs"), stdlib_cache)
    assert again.manifest == stdlib_docs.manifest
    assert again.manifest["python"] == ".".join(map(str, sys.version_info[:3]))


def test_only_the_standard_library_depends_on_the_python_version(notes, tmp_path):
    assert "python" not in prepare(DataConfig(source=str(notes)), tmp_path).manifest


def test_a_misspelt_tokenizer_is_told_before_the_source_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "transformer_dropout.tasks.language.data.prepared.open_corpus", lambda *args: pytest.fail("read")
    )
    with pytest.raises(InputError, match="Did you mean 'bytes'"):
        prepare(DataConfig(tokenizer="byte"), tmp_path)


def test_an_empty_split_leaves_no_entry(tmp_path):
    (tmp_path / "notes").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "notes" / name).write_text("text")
    with pytest.raises(InputError, match=r"validation split of 2 .* is empty"):
        prepare(DataConfig(source=str(tmp_path / "notes"), validation_fraction=0.001), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_default_cache_follows_the_desktop_rule(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "transformer-dropout"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == tmp_path / "home" / ".cache" / "transformer-dropout"


def test_prepare_without_a_cache_uses_the_default(notes, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    prepare(DataConfig(source=str(notes)))
    assert len(os.listdir(tmp_path / "xdg" / "transformer-dropout")) == 1


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:300"])
def test_a_full_cache_is_one_sentence_whatever_is_written_last(notes, small_disk, tokenizer):
    for size in ("4k", "12k"):
        disk = small_disk(f"size={size}")
        sentence = f"^Prepared data cannot be kept in {disk}: no space left on device; "
        with pytest.raises(InputError, match=sentence):
            prepare(DataConfig(source=str(notes), tokenizer=tokenizer), disk)
        assert list(disk.iterdir()) == []
