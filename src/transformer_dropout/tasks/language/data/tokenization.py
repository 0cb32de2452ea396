"""Text to token ids and back: bytes, characters, a byte-pair encoding trained here, or GPT-2's own files.

With ``gpt2-or-bpe`` it is GPT-2's tokenizer where its files are on this machine; elsewhere a byte-pair
encoding that is trained on the training split, among as many ids as GPT-2 has, of which some may be unused.

The separator stands after every document. Where its text occurs inside a document it means the same there.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from transformer_dropout.errors import InputError, did_you_mean
from transformer_dropout.json_file import read_object

from .gpt2_files import VOCABULARY_SIZE as GPT2_VOCABULARY_SIZE
from .gpt2_files import gpt2_is_here, load_gpt2

GPT2_OR_BPE = "gpt2-or-bpe"
_SEPARATOR = "<|endoftext|>"
_CHARS_SEPARATOR, _CHARS_UNKNOWN = "\0", "\ufffd"
_SMALLEST_BPE = 257  # the 256 bytes and the separator
_SPEC_FILE, _LIBRARY_FILE = "tokenizer_spec.json", "tokenizer.json"
_PIECE = 2**18  # characters: bounds the memory one call of encode takes
# GPT-2's rule splits a run of white space in front of its last character when a word follows, so a cut there
# leaves the ids as they were.
_SAFE_CUT = re.compile(r"[ \n](?=\S)")


class Tokenizer(Protocol):
    """What every tokenizer offers; ``spec`` is the text that names it in ``data.tokenizer``."""

    @property
    def spec(self) -> str: ...
    @property
    def vocabulary_size(self) -> int: ...
    @property
    def separator_id(self) -> int: ...
    def encode(self, text: str) -> np.ndarray:
        """Return the ids of a text as int64."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of some ids; bytes that are no UTF-8 become U+FFFD."""
        ...

    def byte_counts(self) -> np.ndarray:
        """Return how many UTF-8 bytes each id stands for; the separator stands for none."""
        ...

    def save(self, folder: Path) -> None:
        """Write what ``load_tokenizer`` needs into a folder."""
        ...


class ByteTokenizer:
    """UTF-8 bytes as ids; NUL separates documents."""

    spec = "bytes"
    vocabulary_size = 256
    separator_id = 0

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return bytes(np.asarray(ids, dtype=np.uint8)).decode("utf-8", errors="replace")

    def byte_counts(self) -> np.ndarray:
        counts = np.ones(self.vocabulary_size, dtype=np.int64)
        counts[self.separator_id] = 0
        return counts

    def save(self, folder: Path) -> None:
        _save_spec(folder, self.spec)


class LibraryTokenizer:
    """A tokenizer of the ``tokenizers`` library.

    Args:
        spec: ``chars``, ``bpe:N``, ``gpt2``, ``gpt2:FOLDER``, or ``gpt2-or-bpe`` for GPT-2's stand-in.
        inner: the library's object.
    """

    def __init__(self, spec: str, inner: Any) -> None:
        self.spec = spec
        self.vocabulary_size: int = GPT2_VOCABULARY_SIZE if spec == GPT2_OR_BPE else inner.get_vocab_size()
        self.separator_id: int = inner.token_to_id(_CHARS_SEPARATOR if spec == "chars" else _SEPARATOR)
        self._inner = inner

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._inner.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._inner.decode(np.asarray(ids).tolist(), skip_special_tokens=False)

    def byte_counts(self) -> np.ndarray:
        entries = [self._inner.id_to_token(index) or "" for index in range(self.vocabulary_size)]
        if self.spec == "chars":
            counts = np.array([len(entry.encode("utf-8")) for entry in entries])
        else:  # a byte-level entry is written with one character a byte
            counts = np.array([len(entry) for entry in entries])
        counts[self.separator_id] = 0
        return counts

    def save(self, folder: Path) -> None:
        _save_spec(folder, self.spec)
        # The library's own `save` has an exception of its own for a full disk.
        (folder / _LIBRARY_FILE).write_text(self._inner.to_str(pretty=True), encoding="utf-8")


def vocabulary_size(spec: str) -> int | None:
    """Return the number of ids a tokenizer has, without training it or reading a file.

    Args:
        spec: see ``DataConfig.tokenizer``.

    Returns:
        The size, or None for ``chars``, where the text decides.

    Raises:
        InputError: when there is no such tokenizer.
    """
    kind, _, detail = spec.partition(":")
    if kind == "gpt2" or spec == GPT2_OR_BPE:
        return GPT2_VOCABULARY_SIZE
    if kind == "bpe":
        return _bpe_size(spec, detail)
    if spec == "bytes":
        return ByteTokenizer.vocabulary_size
    if spec == "chars":
        return None
    raise InputError(
        f"Tokenizer {spec!r} is unknown.{did_you_mean(kind, ['bytes', 'chars', 'bpe:8192', 'gpt2'])} "
        "Use --set data.tokenizer= with bytes, chars, bpe:N, gpt2, gpt2:FOLDER or gpt2-or-bpe."
    )


def make_tokenizer(spec: str, texts: Iterable[str]) -> Tokenizer:
    """Train a tokenizer on some texts, or read the one that needs no training.

    Args:
        spec: see ``DataConfig.tokenizer``.
        texts: the training split.

    Raises:
        InputError: when there is no such tokenizer, its files are missing, or the texts are too small for
            the size asked for.
    """
    size = vocabulary_size(spec)
    kind, _, folder = spec.partition(":")
    if spec == "bytes":
        return ByteTokenizer()
    if kind == "gpt2":
        return LibraryTokenizer(spec, load_gpt2(folder))
    if spec == GPT2_OR_BPE:
        if gpt2_is_here():
            return LibraryTokenizer("gpt2", load_gpt2())
        return LibraryTokenizer(spec, _train_bpe(GPT2_VOCABULARY_SIZE, texts, or_less=True))
    if size is None:
        return LibraryTokenizer(spec, _characters(texts))
    return LibraryTokenizer(spec, _train_bpe(size, texts))


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer that ``save`` wrote.

    Raises:
        InputError: when the folder holds none, or a damaged one.
    """
    from tokenizers import Tokenizer as Library

    folder = Path(folder)
    stored = read_object(folder / _SPEC_FILE, hint="name a folder that a tokenizer was saved to")
    spec, library = stored.get("tokenizer"), folder / _LIBRARY_FILE
    if not isinstance(spec, str):
        raise InputError(f"{folder / _SPEC_FILE} names no tokenizer: name a folder that one was saved to.")
    size = vocabulary_size(spec)
    if spec == "bytes":
        return ByteTokenizer()
    try:
        inner = Library.from_file(str(library))
    except Exception as error:  # the library raises plain Exception for a file it cannot read
        raise InputError(
            f"{library} cannot be read ({' '.join(str(error).split())}): copy it again."
        ) from None
    found = LibraryTokenizer(spec, inner)
    if found.separator_id is None or size not in (None, found.vocabulary_size):
        raise InputError(f"{library} is of another tokenizer than {spec!r}: copy both files again.")
    return found


def pieces(text: str, size: int = _PIECE) -> Iterator[str]:
    """Cut a long text where no tokenizer here would notice, into pieces of about ``size`` characters."""
    start = 0
    while cut := _SAFE_CUT.search(text, start + size):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def _save_spec(folder: Path, spec: str) -> None:
    (folder / _SPEC_FILE).write_text(json.dumps({"tokenizer": spec}) + "\n", encoding="utf-8")


def _bpe_size(spec: str, detail: str) -> int:
    if not (detail.isascii() and detail.isdigit()):
        raise InputError(
            f"Tokenizer {spec!r} has no size: write bpe:N, for example --set data.tokenizer=bpe:8192"
        )
    if int(detail) < _SMALLEST_BPE:
        raise InputError(
            f"Tokenizer {spec!r} is too small: N counts the 256 bytes and the separator, "
            f"so use --set data.tokenizer=bpe:{_SMALLEST_BPE} or more"
        )
    return int(detail)


def _characters(texts: Iterable[str]) -> Any:
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models

    seen = set().union(*texts) - {_CHARS_SEPARATOR, _CHARS_UNKNOWN}
    entries = [_CHARS_SEPARATOR, _CHARS_UNKNOWN, *sorted(seen)]
    # A byte-pair encoding without merges reads character by character.
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    inner = Library(models.BPE(vocab=vocabulary, merges=[], unk_token=_CHARS_UNKNOWN, fuse_unk=False))
    inner.decoder = decoders.Fuse()
    return inner


def _train_bpe(size: int, texts: Iterable[str], or_less: bool = False) -> Any:
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    inner = Library(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[_SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator((piece for text in texts for piece in pieces(text)), trainer)
    reached = inner.get_vocab_size()
    if reached < size and not or_less:
        raise InputError(
            f"The training split has only enough text for {reached} entries, not {size}: "
            f"use --set data.tokenizer=bpe:{reached} or less"
        )
    return inner
