"""Models on disk: ``config.json`` and ``model.safetensors``, with the recipe beside them."""

import json
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from ...errors import InputError
from ...recipe import Recipe
from ...runs.files import write_atomically, write_json, write_tensors
from ...surgery.regularize import Regularization, regularize_
from .decoder import Decoder, DecoderConfig

MODEL_TYPE = "transformer-dropout-decoder"


def save_model(
    folder: Path, model: Decoder, recipe: Recipe, tensors: dict[str, Tensor] | None = None
) -> None:
    """Write a decoder with its recipe.

    Args:
        folder: made when missing.
        model: the regularized decoder.
        recipe: what `regularize_` applied to it.
        tensors: its whole state, where the model's own is sharded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": MODEL_TYPE, "vocabulary_size": model.vocabulary_size, **asdict(model.config)}
    write_json(folder / "config.json", config)
    write_atomically(folder / "regularization.yaml", recipe.to_yaml())
    temporary = folder / ".model.safetensors"
    write_tensors(temporary, model.state_dict() if tensors is None else tensors, {"format": "pt"})
    temporary.replace(folder / "model.safetensors")


def load_model(folder: Path) -> tuple[Decoder, Regularization]:
    """Read a decoder that `save_model` wrote; its regularization is in place.

    Raises:
        InputError: when the folder holds no such model.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        raise InputError(f"{folder} holds no saved model; give the folder of a finished run.") from None
    if config.pop("model_type", None) != MODEL_TYPE:
        raise InputError(f"{folder / 'config.json'} is not of a {MODEL_TYPE}.")
    model = Decoder(config.pop("vocabulary_size"), DecoderConfig(**config))
    regularization = regularize_(model, Recipe.from_yaml(folder / "regularization.yaml"))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    regularization.set_progress(1.0)
    return model.eval(), regularization
