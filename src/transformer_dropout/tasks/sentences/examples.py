"""Labelled sentences: read from a file per class, split by a hash that never changes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError

# Cumulative shares of training and validation; the rest is the test split.
TRAIN, TRAIN_AND_VALIDATION = 0.8, 0.9


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """One example: its text, and its class as an index."""

    text: str
    label: int


@dataclass(frozen=True, kw_only=True)
class SentencesByUse:
    """Sentences by their use; no text is in two of them."""

    train: tuple[Sentence, ...]
    validation: tuple[Sentence, ...]
    test: tuple[Sentence, ...]


def read_sentences(files: Mapping[str, Path]) -> list[Sentence]:
    """Read one sentence per line, one class per file; empty lines do not count.

    Args:
        files: by class, its file. The order of the classes is that of their indices.

    Raises:
        InputError: for fewer than two classes, two that hold the same sentences, or a file that is missing,
            not UTF-8 or empty.
    """
    if len(files) < 2:
        raise InputError(
            f"A classifier needs at least two classes, and there are {len(files)}; write for example "
            "--set data.classes.neg=negative.txt --set data.classes.pos=positive.txt."
        )
    sentences = []
    seen: dict[frozenset[str], str] = {}
    for label, (name, path) in enumerate(files.items()):
        # Other characters that Python takes for line ends, such as U+0085, occur inside sentences.
        texts = [line.strip() for line in read_text(name, path).split("\n")]
        found = [Sentence(text=text, label=label) for text in texts if text]
        if not found:
            raise InputError(f"The file of class {name}, {path}, holds no sentence; write one per line.")
        other = seen.setdefault(frozenset(texts), name)
        if other != name:
            raise InputError(
                f"Classes {other} and {name} hold the same sentences ({path}); name another file."
            )
        sentences += found
    return sentences


def read_text(name: str, path: Path) -> str:
    """Return the text of one class's file.

    Raises:
        InputError: when it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"The file of class {name}, {path}, is not UTF-8 (byte {error.start}); convert it with: "
            f"iconv -f latin1 -t utf-8 {path}"
        ) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"The file of class {name}, {path}, cannot be read: {reason}.") from None


def place(text: str) -> float:
    """Return a number in [0, 1) that depends on the words of a text alone, not on case or spaces."""
    words = " ".join(text.casefold().split())
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:6]) / 2**48


def split(sentences: Sequence[Sentence]) -> SentencesByUse:
    """Split 80/10/10 by each sentence's own hash, so that the same sentence is never in two splits."""
    parts: dict[str, list[Sentence]] = {"train": [], "validation": [], "test": []}
    for sentence in sentences:
        at = place(sentence.text)
        name = "train" if at < TRAIN else "validation" if at < TRAIN_AND_VALIDATION else "test"
        parts[name].append(sentence)
    return SentencesByUse(**{name: tuple(part) for name, part in parts.items()})


def balanced_subset(sentences: Sequence[Sentence], size: int, classes: Sequence[str]) -> list[Sentence]:
    """Return the first sentences in the order of their hashes, as many of each class.

    A larger subset holds every smaller one. Where the classes do not divide the size, the first ones have
    one sentence more.

    Args:
        sentences: to choose from.
        size: how many to take.
        classes: names of all classes.

    Raises:
        InputError: when a class has too few.
    """
    ordered = sorted(sentences, key=lambda sentence: (place(sentence.text), sentence.text))
    chosen = []
    for label, name in enumerate(classes):
        wanted = size // len(classes) + (label < size % len(classes))
        found = [sentence for sentence in ordered if sentence.label == label]
        if len(found) < wanted:
            raise InputError(
                f"Class {name} has {len(found)} training sentences, but {size} of {len(classes)} classes "
                f"need {wanted}; use --set data.train_sentences={len(found) * len(classes)} or less."
            )
        chosen += found[:wanted]
    return chosen


def prepared_splits(files: Mapping[str, Path], train_sentences: int | None) -> SentencesByUse:
    """Read, split, and limit the training sentences.

    Args:
        files: by class, its file.
        train_sentences: how many to train on; None for all.

    Raises:
        InputError: as `read_sentences` and `balanced_subset`, and when a split lacks a class.
    """
    classes = list(files)
    splits = split(read_sentences(files))
    for use, part in vars(splits).items():
        for label, name in enumerate(classes):
            if not any(sentence.label == label for sentence in part):
                raise InputError(
                    f"Class {name} has no sentence in the {use} split, which a hash chooses; give more."
                )
    if train_sentences is None:
        return splits
    train = balanced_subset(splits.train, train_sentences, classes)
    return SentencesByUse(train=tuple(train), validation=splits.validation, test=splits.test)


def digest(sentences: Sequence[Sentence]) -> str:
    """Return the SHA-256 of sentences with their classes, in their order."""
    lines = (json.dumps([sentence.label, sentence.text]) + "\n" for sentence in sentences)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
