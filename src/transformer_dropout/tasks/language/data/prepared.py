"""From a data config to token files on disk, once; afterwards a memory map of them."""

import hashlib
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transformer_dropout.errors import InputError

from .cache_entries import is_sound, publish, write_manifest
from .config import DataConfig
from .corpora import open_corpus
from .documents import Corpus, Document
from .gpt2_files import gpt2_fingerprint, gpt2_is_here
from .splitting import split_documents
from .tokenization import GPT2_OR_BPE, Tokenizer, load_tokenizer, make_tokenizer, pieces, vocabulary_size

_FORMAT = 2  # of the cached files; another number leaves older entries unused
_COUNTED_AT_ONCE = 2**22  # tokens


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """The tokens of one data config.

    Args:
        train: one dimension, read-only, memory-mapped.
        validation: the same.
        test: those behind the validation tokens, or None.
        tokenizer: turns them into text.
        manifest: what these tokens are. ``splits.train.sha256`` and ``splits.validation.sha256`` are of the
            tokens in use: runs whose hashes are equal trained and were evaluated on the same tokens.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray | None
    tokenizer: Tokenizer
    manifest: dict[str, Any]


def prepare(config: DataConfig, cache: Path | None = None) -> PreparedData:
    """Return a config's tokens, from the cache when the same text was prepared in the same way before.

    Args:
        config: which text, tokenizer and split.
        cache: folder; by default ``$XDG_CACHE_HOME/transformer-dropout`` or ``~/.cache/transformer-dropout``.

    Raises:
        InputError: when the source, the tokenizer or a token limit cannot be had, with what to use instead.
    """
    vocabulary_size(config.tokenizer)  # a misspelt tokenizer is told before a slow source is read
    cache = default_cache() if cache is None else Path(cache)
    corpus = open_corpus(config.source, config.text_field)
    entry = cache / _key(config, corpus)
    if not is_sound(entry):
        _build(config, corpus, entry)
    return _load(config, entry)


def default_cache() -> Path:
    """Return the folder that prepared data go to when none is named."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "transformer-dropout"


def _key(config: DataConfig, corpus: Corpus) -> str:
    kind, _, folder = config.tokenizer.partition(":")
    parts = {
        "format": _FORMAT,
        "corpus": corpus.fingerprint,
        "tokenizer": "gpt2" if config.tokenizer == GPT2_OR_BPE and gpt2_is_here() else config.tokenizer,
        "tokenizer_files": gpt2_fingerprint(folder) if kind == "gpt2" and folder else None,
        "validation_fraction": config.validation_fraction,
        "text_field": config.text_field,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _build(config: DataConfig, corpus: Corpus, entry: Path) -> None:
    train, validation = split_documents(corpus.read(), config.validation_fraction)
    tokenizer = make_tokenizer(config.tokenizer, (document.text for document in train))
    dtype = np.dtype(np.uint16 if tokenizer.vocabulary_size <= 2**16 else np.uint32)
    with publish(entry) as folder:
        tokenizer.save(folder)
        splits = {}
        for name, documents in (("train", train), ("validation", validation)):
            path = folder / f"{name}.bin"
            _write_tokens(path, documents, tokenizer, dtype)
            splits[name] = _counts(np.memmap(path, dtype, mode="r"), tokenizer)
        write_manifest(
            folder,
            {
                "source": config.source,
                "tokenizer": tokenizer.spec,
                "vocabulary_size": tokenizer.vocabulary_size,
                "dtype": dtype.name,
                "validation_fraction": config.validation_fraction,
                "splits": splits,
            },
        )


def _write_tokens(path: Path, documents: list[Document], tokenizer: Tokenizer, dtype: np.dtype) -> None:
    separator = np.array([tokenizer.separator_id], dtype)
    with path.open("wb") as stream:
        for document in documents:
            for piece in pieces(document.text):
                stream.write(tokenizer.encode(piece).astype(dtype).tobytes())
            stream.write(separator.tobytes())


def _load(config: DataConfig, entry: Path) -> PreparedData:
    manifest = json.loads((entry / "manifest.json").read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(entry)
    splits, counts = {}, {}
    for name, limit in (("train", config.train_tokens), ("validation", config.validation_tokens)):
        tokens = np.memmap(entry / f"{name}.bin", np.dtype(manifest["dtype"]), mode="r")
        splits[name] = _limited(tokens, limit, name)
        whole = len(splits[name]) == len(tokens)
        counts[name] = manifest["splits"][name] if whole else _counts(splits[name], tokenizer)
    test = None
    if config.test_tokens is not None:
        test = _limited(tokens[len(splits["validation"]) :], config.test_tokens, "test")
        counts["test"] = _counts(test, tokenizer)
    manifest = {key: value for key, value in manifest.items() if key != "files"}
    # Equal content shares an entry, so the source's name is this config's and not the one that came first.
    manifest |= {"source": config.source, "splits": counts}
    if config.source.startswith("stdlib-"):
        manifest["python"] = platform.python_version()
    if tokenizer.spec == GPT2_OR_BPE:
        manifest["note"] = (
            "GPT-2's tokenizer is not on this machine: the tokens are those of a byte-pair encoding that was "
            f"trained on the training split, among the {tokenizer.vocabulary_size:,} ids that GPT-2's has."
        )
    return PreparedData(**splits, test=test, tokenizer=tokenizer, manifest=manifest)


def _limited(tokens: np.ndarray, limit: int | None, name: str) -> np.ndarray:
    if limit is not None and limit > len(tokens):
        raise InputError(
            f"data.{name}_tokens is {limit} but the {name} split has {len(tokens)} tokens: "
            f"use --set data.{name}_tokens={len(tokens)} or less, or null for all of them"
        )
    return tokens[:limit]


def _counts(tokens: np.ndarray, tokenizer: Tokenizer) -> dict[str, int | str]:
    """Return documents (the last may be cut short), tokens, bytes of text and a hash, in one pass."""
    digest = hashlib.sha256()
    seen = np.zeros(tokenizer.vocabulary_size, dtype=np.int64)
    for start in range(0, len(tokens), _COUNTED_AT_ONCE):
        part = np.asarray(tokens[start : start + _COUNTED_AT_ONCE])
        digest.update(part.data)
        seen += np.bincount(part, minlength=len(seen))
    separators = int(seen[tokenizer.separator_id])
    return {
        "documents": separators + int(tokens[-1] != tokenizer.separator_id),
        "tokens": len(tokens),
        "bytes": int(seen @ tokenizer.byte_counts()),
        "sha256": digest.hexdigest(),
    }
