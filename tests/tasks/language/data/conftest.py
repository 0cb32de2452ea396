"""Texts the tests of this folder share, and one cache for the corpus that takes seconds to parse."""

import json
from pathlib import Path

import pytest

from transformer_dropout.tasks.language.data import DataConfig, PreparedData, prepare


@pytest.fixture(scope="session")
def stdlib_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stdlib-cache")


@pytest.fixture(scope="session")
def stdlib_docs(stdlib_cache: Path) -> PreparedData:
    return prepare(DataConfig(source="stdlib-docs"), stdlib_cache)


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A folder of forty short documents, each with words of its own."""
    folder = tmp_path / "notes"
    for number in range(40):
        file = folder / f"part-{number % 3}" / f"page-{number:02d}.{'md' if number % 2 else 'txt'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# Note {number}\nThe café in street {number * 37} opens at {number % 12}.\n" * 4)
    return folder


@pytest.fixture(scope="session")
def gpt2_vocabulary() -> dict[str, int]:
    """As many entries as GPT-2 has, of which only the bytes and one merge ("he") matter."""
    from tokenizers import pre_tokenizers

    entries = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "he"]
    entries += [f"filler{number}" for number in range(50_256 - len(entries))]
    return {entry: number for number, entry in enumerate(entries)}


@pytest.fixture(scope="session")
def gpt2_folder(gpt2_vocabulary: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``vocab.json`` and ``merges.txt`` in GPT-2's form and size."""
    folder = tmp_path_factory.mktemp("gpt2")
    (folder / "vocab.json").write_text(json.dumps({**gpt2_vocabulary, "<|endoftext|>": 50_256}))
    (folder / "merges.txt").write_text("#version: 0.2\nh e\n")
    return folder
