"""Models on disk: ``config.json`` and ``model.safetensors``, with the recipe beside them."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ...json_file import read_object
from ...recipe import Recipe
from ...runs.dataclass_from_data import dataclass_from_data
from ...runs.files import write_atomically, write_json, write_tensors
from ...schedules import Constant
from ...surgery.mixture_of_experts import Mixtures, mixture_of_experts_
from ...surgery.regularize import Regularization, regularize_
from ...tensor_file import check_fit, read_tensors
from .decoder import Decoder, DecoderConfig

MODEL_TYPE = "transformer-dropout-decoder"
LARGEST_VOCABULARY = 2**31


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
    config: dict[str, Any] = {
        "model_type": MODEL_TYPE,
        "vocabulary_size": model.vocabulary_size,
        **asdict(model.config),
    }
    mixtures = Mixtures(model, Constant(0.0)).placed
    if mixtures:
        one = next(iter(mixtures.values()))
        config["experts"] = asdict(
            SavedExperts(experts=len(one.expand), top_k=one.top_k, places=tuple(mixtures))
        )
    write_json(folder / "config.json", config)
    write_atomically(folder / "regularization.yaml", recipe.to_yaml())
    temporary = folder / ".model.safetensors"
    write_tensors(temporary, model.state_dict() if tensors is None else tensors, {"format": "pt"})
    temporary.replace(folder / "model.safetensors")


@dataclass(frozen=True, kw_only=True)
class SavedExperts:
    """Which MLPs are mixtures of experts, by their paths, of how many, and how many act on a token."""

    experts: int
    top_k: int
    places: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SavedDecoder(DecoderConfig):
    """What a ``config.json`` says besides its ``model_type``.

    Attributes:
        vocabulary_size: ids that the model knows.
        experts: None for MLPs alone.
    """

    vocabulary_size: int
    experts: SavedExperts | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.vocabulary_size <= LARGEST_VOCABULARY:
            raise InputError(f"model.vocabulary_size is {self.vocabulary_size}, which no model has.")

    def build(self) -> Decoder:
        """Return the decoder, its weights drawn anew."""
        shape = {entry.name: getattr(self, entry.name) for entry in fields(DecoderConfig)}
        model, mixed = Decoder(self.vocabulary_size, DecoderConfig(**shape)), self.experts
        if mixed is not None:
            mixture_of_experts_(model, mixed.places, experts=mixed.experts, top_k=mixed.top_k)
        return model


def load_model(folder: Path) -> tuple[Decoder, Regularization]:
    """Read a decoder that `save_model` wrote; its regularization is in place.

    Raises:
        InputError: when the folder holds no such model, or one of its files is damaged.
    """
    place, weights = folder / "config.json", folder / "model.safetensors"
    config = read_config(place)
    recipe, tensors = Recipe.from_yaml(folder / "regularization.yaml"), read_tensors(weights)
    with torch.device("meta"):
        # A damaged size must not take the memory that it asks for.
        plain = config.build().state_dict()
    check_fit(weights, {name: tensor for name, tensor in tensors.items() if name in plain}, plain)
    model = config.build()
    regularization = regularize_(model, recipe)
    check_fit(weights, tensors, model.state_dict())
    model.load_state_dict(tensors)
    regularization.set_progress(1.0)
    return model.eval(), regularization


def read_config(path: Path) -> SavedDecoder:
    """Read the ``config.json`` of a saved decoder.

    Raises:
        InputError: when it is damaged, or of another model.
    """
    content = read_object(path, hint="give the folder of a finished run")
    if content.pop("model_type", None) != MODEL_TYPE:
        raise InputError(f"{path} is not of a {MODEL_TYPE}.")
    try:
        return dataclass_from_data(SavedDecoder, content, {}, ("model",))
    except InputError as error:
        raise InputError(f"{path} is damaged: {error}") from None
