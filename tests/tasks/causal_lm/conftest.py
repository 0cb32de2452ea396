"""A random GPT-2 of two blocks with a vocabulary of words, a text, and prompts with answers."""

import json
from pathlib import Path

import pytest
import torch

WORDS = ("the", "cat", "dog", "owl", "counts", "returns", "one", "two", "three", "and", "why", "because")


@pytest.fixture(scope="session")
def gpt2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved language model and its tokenizer, which has no padding token."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    vocabulary = {word: at for at, word in enumerate(("<end>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    folder = tmp_path_factory.mktemp("gpt2")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>").save_pretrained(
        folder
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=len(vocabulary), n_positions=32, n_embd=16, n_layer=2, n_head=2, eos_token_id=0
        )
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def words_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of about 2,000 words."""
    path = tmp_path_factory.mktemp("words") / "words.txt"
    lines = (f"the {WORDS[1 + n % 3]} {WORDS[4 + n % 2]} {WORDS[6 + n * n % 3]} and\n" for n in range(400))
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty prompts with answers of unequal lengths."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    pairs = [
        {
            "prompt": f"why {WORDS[1 + n % 3]} {' '.join(WORDS[4 + (n >> bit) % 2] for bit in range(6))}",
            "answer": "because " + "one " * (1 + n % 3),
        }
        for n in range(40)
    ]
    path.write_text("\n".join(map(json.dumps, pairs)) + "\n", encoding="utf-8")
    return path
