"""A random BERT of two blocks with a WordPiece vocabulary, and made-up sentences of two classes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from transformer_dropout.runs.default_arms import default_arms
from transformer_dropout.runs.run_config import RunConfig

THINGS = ("film", "plot", "cast", "scene", "joke", "score", "ending", "hero")
WORDS = {"neg": ("dull", "poor", "weak", "flat"), "pos": ("warm", "sharp", "rich", "funny")}
MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def sentences(name: str, count: int) -> list[str]:
    words = WORDS[name]
    return [
        f"the {THINGS[n % 8]} is {words[n % 4]}" + f" and the {THINGS[n % 7]} {words[n % 3]}" * (n // 8 % 4)
        for n in range(count)
    ]


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved encoder without a classifier, and its tokenizer."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = sorted({w for name in WORDS for text in sentences(name, 60) for w in text.split()})
    vocabulary = {word: at for at, word in enumerate([*MARKS, *words])}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder = tmp_path_factory.mktemp("model")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
        )
        BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def class_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of 60 sentences for each of two classes."""
    folder = tmp_path_factory.mktemp("classes")
    files = {name: folder / f"{name}.txt" for name in WORDS}
    for name, path in files.items():
        path.write_text("\n".join(sentences(name, 60)) + "\n", encoding="utf-8")
    return files


@pytest.fixture(scope="session")
def configs(model_dir: Path, class_paths: dict[str, Path]) -> dict[str, RunConfig]:
    """A run config of every arm: two epochs of 24 sentences."""
    changes = {
        "model.source": str(model_dir),
        **{f"data.classes.{name}": str(path) for name, path in class_paths.items()},
        "data.train_sentences": "24",
        "training.batch": "8",
        "training.steps": "6",
        "training.eval_every": "3",
        "training.warmup_steps": "1",
        "training.lr": "{linear: {start: 1e-3, end: 0.0}}",
    }
    return {config.name: config for config in default_arms("sentences", changes)}


@pytest.fixture
def changed(configs: dict[str, RunConfig]) -> Callable[..., RunConfig]:
    """Make a config of one arm with other training settings."""

    def make(arm: str = "bert", *, seed: int = 0, **training: Any) -> RunConfig:
        config = configs[arm]
        return replace(config, seed=seed, training=replace(config.training, **training))

    return make
