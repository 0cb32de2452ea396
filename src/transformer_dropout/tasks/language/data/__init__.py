"""Text to tokens to batches: sources, tokenizers, a cache of tokens, and their order."""

from .config import DataConfig
from .corpora import open_corpus
from .documents import Corpus, Document
from .prepared import PreparedData, default_cache, prepare
from .splitting import split_documents
from .tokenization import (
    ByteTokenizer,
    LibraryTokenizer,
    Tokenizer,
    load_tokenizer,
    make_tokenizer,
    vocabulary_size,
)
from .windows import Windows

__all__ = [
    "ByteTokenizer",
    "Corpus",
    "DataConfig",
    "Document",
    "LibraryTokenizer",
    "PreparedData",
    "Tokenizer",
    "Windows",
    "default_cache",
    "load_tokenizer",
    "make_tokenizer",
    "open_corpus",
    "prepare",
    "split_documents",
    "vocabulary_size",
]
