"""Examples of a causal language model: windows of a text, or prompts with the answers to be learned."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError
from ..language.data import Document, open_corpus, split_documents

# The target of a token whose prediction is not trained.
IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Example:
    """Token ids, and how many of the first ones are a prompt that is not to be learned."""

    ids: tuple[int, ...]
    prompt: int = 0


@dataclass(frozen=True, kw_only=True)
class PaddedExamples:
    """Examples of one split, and the id that fills up a batch."""

    examples: tuple[Example, ...]
    pad: int

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, indices: Sequence[int] | np.ndarray) -> tuple[dict[str, Tensor], Tensor]:
        """Return ``input_ids`` and ``attention_mask`` of (examples, tokens), and the next tokens."""
        chosen = [self.examples[index] for index in indices]
        longest = max(len(example.ids) for example in chosen) - 1
        ids = torch.full((len(chosen), longest), self.pad)
        mask, targets = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
        for row, example in enumerate(chosen):
            tokens = torch.tensor(example.ids)
            ids[row, : len(tokens) - 1], mask[row, : len(tokens) - 1] = tokens[:-1], 1
            # The token before the answer predicts its first one.
            first = max(0, example.prompt - 1)
            targets[row, first : len(tokens) - 1] = tokens[1 + first :]
        return {"input_ids": ids, "attention_mask": mask}, targets

    def sizes(self) -> dict[str, Any]:
        """Return counts and a digest for the record."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(np.array([example.prompt, *example.ids], dtype=np.int64).tobytes())
        tokens = sum(len(example.ids) for example in self.examples)
        return {"documents": len(self), "tokens": tokens, "sha256": digest.hexdigest()}


def text_examples(
    source: str, tokenizer: Any, context: int, held_out: float
) -> tuple[list[Example], list[Example], list[Example]]:
    """Return windows of a text for training, validation and test.

    Documents are held out by a hash of their names, and a single text by position. The first
    half of what is held out validates, the second tests.

    Args:
        source: a text file, a folder of texts, ``stdlib-docs``, ``stdlib-code`` or ``dataset:NAME``.
        tokenizer: of the model.
        context: tokens that a window predicts.
        held_out: share of the documents, or of the text, for validation and test together.

    Raises:
        InputError: when there is too little text.
    """
    train, held = split_documents(open_corpus(source).read(), held_out)
    stream = token_stream(held, tokenizer)
    half = len(stream) // 2
    parts = {"training": token_stream(train, tokenizer), "validation": stream[:half], "test": stream[half:]}
    for name, tokens in parts.items():
        if len(tokens) < context + 1:
            raise InputError(
                f"The {name} split of {source} has {len(tokens)} tokens, and one example takes "
                f"{context + 1}; give more text, or lower --set model.context."
            )
    train_part, validation, test = (windows(tokens, context) for tokens in parts.values())
    return train_part, validation, test


def token_stream(documents: Iterable[Document], tokenizer: Any) -> list[int]:
    """Return the tokens of documents one after another, each with the token that ends a text behind it."""
    texts = [document.text for document in documents]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    found = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return [token for ids in found["input_ids"] for token in [*ids, *end]]


def windows(tokens: Sequence[int], context: int) -> list[Example]:
    """Return the windows of ``context`` predictions that do not overlap in what they predict."""
    starts = range(0, len(tokens) - context, context)
    return [Example(ids=tuple(tokens[start : start + context + 1])) for start in starts]


def pair_examples(
    path: Path, tokenizer: Any, context: int, held_out: float
) -> tuple[list[Example], list[Example], list[Example]]:
    """Return prompts with answers for training, validation and test, split by a hash of the prompt.

    Args:
        path: lines of JSON with the keys ``prompt`` and ``answer``.
        tokenizer: of the model.
        context: pairs of more tokens than one more than this are refused.
        held_out: share of the prompts for validation and test together.

    Raises:
        InputError: for a line that is no pair or too long, or a split without any.
    """
    parts: dict[str, list[Example]] = {"training": [], "validation": [], "test": []}
    for line, (prompt, answer) in read_pairs(path):
        asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        told = tokenizer(answer, add_special_tokens=False)["input_ids"]
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        ids = (*asked, *told, *end)
        if len(ids) > context + 1:
            raise InputError(
                f"{path}:{line}: prompt and answer have {len(ids)} tokens, and {context + 1} fit; use --set "
                f"model.context={len(ids) - 1}, or shorten them."
            )
        at = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:6]) / 2**48
        name = "validation" if at < held_out / 2 else "test" if at < held_out else "training"
        parts[name].append(Example(ids=ids, prompt=len(asked)))
    for name, found in parts.items():
        if not found:
            raise InputError(
                f"{path} has no pair in its {name} split, which a hash chooses; give more pairs."
            )
    return parts["training"], parts["validation"], parts["test"]


def read_pairs(path: Path) -> Iterable[tuple[int, tuple[str, str]]]:
    """Yield line numbers and pairs of a file of JSON lines.

    Raises:
        InputError: for what cannot be read, or a line that is no pair.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            pair = json.loads(line)
            prompt, answer = pair["prompt"], pair["answer"]
        except (ValueError, KeyError, TypeError):
            prompt = answer = None
        if not (isinstance(prompt, str) and isinstance(answer, str) and prompt and answer):
            raise InputError(
                f'{path}:{number}: this is no pair; write {{"prompt": "...", "answer": "..."}} on a line, '
                "both with some text."
            )
        yield number, (prompt, answer)
