"""From the name of a source to its documents."""

import hashlib
import os
from functools import partial
from pathlib import Path

from transformer_dropout.errors import InputError, did_you_mean

from .datasets_corpus import datasets_corpus
from .documents import Corpus, Document, with_text
from .stdlib_corpus import stdlib_corpus

_FORMS = (
    "A source is stdlib-docs, stdlib-code, a text file, a folder of .txt and .md files, "
    "or dataset:NAME_OR_FOLDER."
)
_TEXT_SUFFIXES = {".txt", ".md"}


def open_corpus(source: str, text_field: str = "text") -> Corpus:
    """Find a source of text; its ``read()`` gives the documents.

    Args:
        source: see ``DataConfig.source``.
        text_field: the column that holds the text, for a ``dataset:`` source.

    Raises:
        InputError: when there is no such source, or nothing in it that can be read.
    """
    if source == "stdlib-docs":
        return stdlib_corpus("docs")
    if source == "stdlib-code":
        return stdlib_corpus("code")
    if source.startswith("dataset:") and source != "dataset:":
        return datasets_corpus(source.removeprefix("dataset:"), text_field)
    return _text_corpus(source)


def _text_corpus(source: str) -> Corpus:
    path = Path(os.path.expanduser(source))
    if source and path.is_dir():
        files = {
            file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if _is_text(file)
        }
        if not files:
            raise InputError(
                f"Folder {source} holds no .txt or .md file: give a folder that does, or one file."
            )
    elif path.is_file():
        files = {path.name: path}
    else:
        raise _unknown(source)
    digest = hashlib.sha256(b"text")
    for name, file in files.items():
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        # One file splits by position, so its name does not matter and a renamed copy is the same corpus.
        known_as = name if len(files) > 1 else ""
        digest.update(f"\n{known_as} {content}".encode("utf-8", "surrogateescape"))
    return Corpus(fingerprint=digest.hexdigest(), read=partial(_documents, files, source))


def _is_text(path: Path) -> bool:
    return path.suffix.lower() in _TEXT_SUFFIXES and path.is_file()


def _unknown(source: str) -> InputError:
    looks_like_a_path = any(sign in source for sign in "/\\.~")
    if looks_like_a_path:
        return InputError(f"There is no file or folder {source}: check --set data.source=. {_FORMS}")
    return InputError(
        f"Source {source!r} is unknown.{did_you_mean(source, ['stdlib-docs', 'stdlib-code'])} {_FORMS}"
    )


def _documents(files: dict[str, Path], source: str) -> list[Document]:
    return with_text((Document(name, _text(file)) for name, file in files.items()), source)


def _text(file: Path) -> str:
    content = file.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file} is not UTF-8 text (byte 0x{content[error.start]:02x} at offset {error.start}): "
            "save it as UTF-8, or name another file in --set data.source="
        ) from error
