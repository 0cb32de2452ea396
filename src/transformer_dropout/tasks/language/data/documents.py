"""What every source of text gives: named documents, and a fingerprint that costs no parsing."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from transformer_dropout.errors import InputError


@dataclass(frozen=True)
class Document:
    """One text that belongs together; ``split`` is set only where the source itself says which split."""

    name: str
    text: str
    split: Literal["train", "validation"] | None = None


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A source that was found: what it contains, and how to read it.

    Args:
        fingerprint: changes when the content does; computed without parsing the content.
        read: returns the documents; may take seconds.
    """

    fingerprint: str
    read: Callable[[], list[Document]]


def with_text(documents: Iterable[Document], source: str) -> list[Document]:
    """Return the documents that hold more than white space.

    Raises:
        InputError: when there are none.
    """
    kept = [document for document in documents if document.text.strip()]
    if not kept:
        raise InputError(f"{source} holds no text: give a source with some text in it to --set data.source=")
    return kept
