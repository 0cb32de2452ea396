"""GPT-2's tokenizer from files that are already on this machine; nothing here touches the network."""

import hashlib
import os
from pathlib import Path
from typing import Any

from transformer_dropout.errors import InputError

VOCABULARY_SIZE = 50_257
_SEPARATOR = "<|endoftext|>"
_REPOSITORIES = ("openai-community/gpt2", "gpt2")
_FILES = ("tokenizer.json",)
_OLD_FILES = ("vocab.json", "merges.txt")
_INSTEAD = "use --set data.tokenizer=bytes or data.tokenizer=bpe:8192"


def load_gpt2(folder: str = "") -> Any:
    """Return GPT-2's tokenizer as an object of the ``tokenizers`` library.

    Args:
        folder: holds ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``; empty means the Hugging Face
            cache.

    Raises:
        InputError: when the files are not there, or are not GPT-2's.
    """
    from tokenizers import Tokenizer as Library

    files = gpt2_files(folder)
    try:
        inner = Library.from_file(str(files[0])) if len(files) == 1 else _from_old_files(*files)
    except Exception as error:  # the library raises plain Exception for a file it cannot read
        raise InputError(f"{files[0]} is not a tokenizer file ({error}): {_INSTEAD}") from error
    if inner.get_vocab_size() != VOCABULARY_SIZE or inner.token_to_id(_SEPARATOR) is None:
        raise InputError(
            f"{files[0]} has {inner.get_vocab_size()} entries, so it is not GPT-2's, which has "
            f"{VOCABULARY_SIZE} with {_SEPARATOR}: {_INSTEAD}, or name another folder"
        )
    inner.no_truncation()  # a saved file may carry a model's length limit
    inner.no_padding()
    return inner


def gpt2_is_here() -> bool:
    """Return whether the files are in the Hugging Face cache of this machine."""
    try:
        return bool(gpt2_files())
    except (InputError, ImportError):
        return False


def gpt2_fingerprint(folder: str) -> str:
    """Return a hash of the tokenizer files in a folder."""
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in gpt2_files(folder))).hexdigest()


def gpt2_files(folder: str = "") -> list[Path]:
    """Return ``[tokenizer.json]`` or ``[vocab.json, merges.txt]`` of a folder or of the Hugging Face cache.

    Raises:
        InputError: when neither is there.
    """
    if not folder:
        return [_cached_file()]
    for names in (_FILES, _OLD_FILES):
        files = [Path(os.path.expanduser(folder)) / name for name in names]
        if all(file.is_file() for file in files):
            return files
    raise InputError(
        f"{folder} holds neither tokenizer.json nor vocab.json with merges.txt: name the folder of GPT-2's "
        f"tokenizer in --set data.tokenizer=gpt2:FOLDER, or {_INSTEAD}"
    )


def _cached_file() -> Path:
    from huggingface_hub import try_to_load_from_cache

    for repository in _REPOSITORIES:
        found = try_to_load_from_cache(repository, "tokenizer.json")
        if isinstance(found, str):
            return Path(found)
    raise InputError(
        "GPT-2's tokenizer is not in the Hugging Face cache of this machine and is not downloaded: "
        f"{_INSTEAD}, or name a folder with --set data.tokenizer=gpt2:FOLDER"
    )


def _from_old_files(vocabulary: Path, merges: Path) -> Any:
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    inner = Library(models.BPE.from_file(str(vocabulary), str(merges)))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([_SEPARATOR])
    return inner
