"""A dataset of the ``datasets`` library as a corpus: every row a document."""

import hashlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from transformer_dropout.errors import InputError

from .documents import Corpus, Document, with_text

_SAVED_MARKS = ("dataset_dict.json", "state.json")
_BATCH = 1000  # rows read at a time


def datasets_corpus(name: str, text_field: str) -> Corpus:
    """Load a dataset saved with ``save_to_disk``, else one that ``load_dataset`` knows.

    Args:
        name: a folder, or ``NAME``, or ``NAME:CONFIGURATION``.
        text_field: the column that holds the text.

    Raises:
        InputError: when the library is not installed, the dataset is not found, or the column is not there
            or holds something other than text.
    """
    splits = _splits(_load(name), name)
    digest = hashlib.sha256(b"dataset")
    for split, rows in splits.items():
        _check_column(rows, text_field, name)
        digest.update(f"\n{split} {rows.num_rows}\n".encode())
        for text in _texts(rows, text_field, name):
            digest.update(f"\n{len(text)}\n{text}".encode())
    return Corpus(fingerprint=digest.hexdigest(), read=partial(_documents, splits, text_field, name))


def _load(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"dataset:{name} needs the datasets library: pip install 'transformer-dropout[datasets]'"
        ) from error
    folder = Path(os.path.expanduser(name))
    if any((folder / mark).is_file() for mark in _SAVED_MARKS):
        return datasets.load_from_disk(str(folder))
    path, _, configuration = name.partition(":")
    try:
        return datasets.load_dataset(path, configuration or None)
    except (OSError, ValueError) as error:  # not found, no network, a configuration is missing
        raise InputError(
            f"The datasets library cannot load {name!r}: {error} "
            "Use --set data.source= with dataset:NAME, dataset:NAME:CONFIGURATION, or dataset:FOLDER that "
            "save_to_disk wrote."
        ) from error


def _splits(dataset: Any, name: str) -> dict[str, Any]:
    """Return ``train`` and ``validation`` where the dataset has both, else all rows of all splits."""
    if not hasattr(dataset, "keys"):
        return {"rows": dataset}
    held_out = next((split for split in ("validation", "test") if split in dataset), None)
    if "train" in dataset and held_out is not None:
        return {"train": dataset["train"], "validation": dataset[held_out]}
    return {f"rows of {split}": dataset[split] for split in sorted(dataset)}


def _check_column(rows: Any, text_field: str, name: str) -> None:
    if text_field not in rows.column_names:
        raise InputError(
            f"dataset:{name} has no column {text_field!r}: use --set data.text_field= with one of "
            f"{', '.join(rows.column_names)}"
        )


def _texts(rows: Any, text_field: str, name: str) -> Iterator[str]:
    for batch in rows.select_columns(text_field).iter(_BATCH):
        for text in batch[text_field]:
            if text is not None and not isinstance(text, str):
                raise InputError(
                    f"Column {text_field!r} of dataset:{name} holds {type(text).__name__}, not text: "
                    f"use --set data.text_field= with another of {', '.join(rows.column_names)}"
                )
            yield text or ""


def _documents(splits: dict[str, Any], text_field: str, name: str) -> list[Document]:
    documents = []
    for split, rows in splits.items():
        given: Literal["train", "validation"] | None = None
        if split == "train" or split == "validation":
            given = split
        texts = _texts(rows, text_field, name)
        documents += [Document(f"{split}/{row}", text, given) for row, text in enumerate(texts)]
    return with_text(documents, f"dataset:{name}")
