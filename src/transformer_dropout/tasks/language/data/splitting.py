"""Which documents are held out: decided by their names, so the same on every machine and in every order."""

import hashlib
from collections.abc import Sequence

from transformer_dropout.errors import InputError

from .documents import Document

_REACH = 1000  # characters: how far before the cut of a single text a line end is looked for


def split_documents(
    documents: Sequence[Document], validation_fraction: float
) -> tuple[list[Document], list[Document]]:
    """Return the training and the validation documents.

    A split the source gives is kept, in the source's order. Otherwise a document is held out when the hash
    of its name, read as a fraction, is below ``validation_fraction``, and the documents are ordered by that
    hash: neither alphabetical, which would make the first tokens alike, nor random. A single document is cut
    in two instead, its end held out.

    Args:
        documents: of one source.
        validation_fraction: between 0 and 1.

    Raises:
        InputError: when either split is empty.
    """
    if any(document.split for document in documents):
        train = [document for document in documents if document.split == "train"]
        validation = [document for document in documents if document.split == "validation"]
    elif len(documents) == 1:
        train, validation = _cut(documents[0], validation_fraction)
    else:
        ordered = sorted(documents, key=name_fraction)
        train = [document for document in ordered if name_fraction(document) >= validation_fraction]
        validation = [document for document in ordered if name_fraction(document) < validation_fraction]
    if not train or not validation:
        raise InputError(
            f"The {'validation' if train else 'training'} split of {len(documents)} document(s) is empty: "
            f"give more text{_other_fraction(documents, bool(train))}"
        )
    return train, validation


def _other_fraction(documents: Sequence[Document], all_train: bool) -> str:
    """Return the advice to take a fraction that lets one document be alone in the empty split."""
    fractions = sorted(name_fraction(document) for document in documents)
    if len(fractions) < 2 or any(document.split for document in documents):
        return ""
    low, high = fractions[:2] if all_train else fractions[-2:]
    return f" or use --set data.validation_fraction={(low + high) / 2:.6g}"


def name_fraction(document: Document) -> float:
    """Return the hash of the document's name as a fraction in [0, 1)."""
    digest = hashlib.sha256(document.name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48  # 48 bits are exact in a float


def _cut(document: Document, validation_fraction: float) -> tuple[list[Document], list[Document]]:
    text = document.text
    cut = round(len(text) * (1.0 - validation_fraction))
    reach = min(_REACH, cut // 2)
    line_end = text.rfind("\n", cut - reach, cut)
    if line_end >= 0:
        cut = line_end + 1
    parts = (("train", text[:cut]), ("validation", text[cut:]))
    train, validation = (
        [Document(f"{document.name} ({name})", part)] if part else [] for name, part in parts
    )
    return train, validation
