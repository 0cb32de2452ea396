"""Inputs for a model, made from what it says of itself: small, and the same at every call."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .observation.inputs import call
from .observation.restore import unchanged

BATCH, TOKENS, SIDE, SAMPLES = 2, 12, 32, 4000
Inputs = dict[str, Tensor] | tuple[Tensor, ...]


def own_inputs(model: nn.Module) -> Iterator[Inputs]:
    """Yield inputs that a model may take, the likeliest first; nothing where it says nothing of itself.

    A model of Hugging Face says it in its config and in the arguments of its forward, one of timm by its
    input size, torch's layers by their width, any other by its first embedding, convolution or linear layer.

    Args:
        model: any model.
    """
    reference = next(model.parameters(), None)
    device = torch.device("cpu") if reference is None else reference.device
    floats = torch.float32
    if reference is not None and reference.is_floating_point():
        floats = reference.dtype
    if hasattr(getattr(model, "config", None), "to_dict"):
        candidates: Iterator[Any] = hugging_face_inputs(model)
    else:
        candidates = plain_inputs(model)
    for inputs in candidates:
        if device.type == "meta" and isinstance(inputs, dict):
            # Whether a mask hides anything is read off its numbers, and there are none.
            inputs = {name: value for name, value in inputs.items() if "mask" not in name}
        names, values = (inputs.keys(), inputs.values()) if isinstance(inputs, dict) else ((), inputs)
        moved = [v.to(device, floats if v.is_floating_point() else v.dtype) for v in values]
        yield dict(zip(names, moved, strict=True)) if isinstance(inputs, dict) else tuple(moved)


def usable_inputs(model: nn.Module) -> Inputs:
    """Return the first of a model's own inputs that it takes.

    Raises:
        InputError: when it takes none.
    """
    for inputs in own_inputs(model):
        try:
            with unchanged(model), torch.no_grad():
                call(model.eval(), inputs)
        except Exception:  # whatever a stranger's code says of inputs that it was not made for
            continue
        return inputs
    raise InputError(f"No inputs are known for a {type(model).__name__}; give some: (model, inputs).")


def noise(*shape: int) -> Tensor:
    """Return random numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def tokens(vocabulary: int, length: int = TOKENS, seed: int = 0) -> Tensor:
    """Return random token ids above those that mean padding, beginning and end."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(min(4, vocabulary - 1), min(vocabulary, 40), (BATCH, length), generator=generator)


def hugging_face_inputs(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield inputs for a model of Hugging Face."""
    config: Any = model.config
    taken = inspect.signature(model.forward).parameters
    text, decoder = text_inputs(config, taken)
    images, sounds = image_inputs(config, taken), sound_inputs(model, taken)
    main = getattr(model, "main_input_name", "input_ids")
    if main.startswith("pixel_values"):
        ordered = [
            *images,
            *({**image, **decoder} for image in images),
            *({**text, **i} for i in images),
            text,
        ]
    elif main.startswith("input_") and main != "input_ids":
        ordered = [*({**sound, **decoder} for sound in sounds), *sounds, text]
    else:
        both = [{**text, **image, **decoder} for image in images]
        texts = [{**text, **decoder}, *both, text, with_end_token(text, config)]
        ordered = [*texts, *images, *sounds, *series_inputs(config, taken)]
    known: list[dict[str, list[Any]]] = []
    for inputs in ordered:
        values = {name: value.tolist() for name, value in inputs.items()}
        if inputs and values not in known:
            known.append(values)
            yield inputs


def with_end_token(text: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Return tokens of which the last one ends the text: the head of some classifiers reads it there."""
    end = getattr(config, "eos_token_id", None)
    if "input_ids" not in text or type(end) is not int:
        return text
    ids = text["input_ids"].clone()
    ids[:, -1] = end
    return {**text, "input_ids": ids}


def text_inputs(config: Any, taken: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tokens that an encoder or a model reads, and those that a decoder reads."""
    vocabulary = size_in(config, ("vocab_size",), 0)
    if not vocabulary:
        return {}, {}
    text = {}
    if "input_ids" in taken:
        text["input_ids"] = tokens(vocabulary)
        if "attention_mask" in taken:
            text["attention_mask"] = torch.ones(BATCH, TOKENS, dtype=torch.long)
        if "bbox" in taken:
            text["bbox"] = torch.zeros(BATCH, TOKENS, 4, dtype=torch.long)
    decoder = {"decoder_input_ids": tokens(vocabulary, seed=1)} if "decoder_input_ids" in taken else {}
    return text, decoder


def image_inputs(config: Any, taken: Any) -> list[dict[str, Tensor]]:
    """Return images, and videos, where a model takes them."""
    # What has no size of its own often has a backbone that leaves one in 32 pixels.
    size = first_of(config, ("image_size", "img_size")) or 2 * SIDE
    height, width = tuple(size)[-2:] if isinstance(size, tuple | list) else (size, size)
    channels = size_in(config, ("num_channels", "in_channels", "in_chans"), 3)
    frames = size_in(config, ("num_frames", "frames_per_clip"), 4)
    found = []
    if "pixel_values" in taken:
        found = [
            {"pixel_values": noise(BATCH, channels, height, width)},
            {"pixel_values": noise(BATCH, frames, channels, height, width)},
        ]
    if "pixel_values_videos" in taken:
        found.append({"pixel_values_videos": noise(BATCH, frames, channels, height, width)})
    return found


def sound_inputs(model: nn.Module, taken: Any) -> list[dict[str, Tensor]]:
    """Return waves and their features, where a model takes them."""
    config: Any = model.config
    names = ("num_mel_bins", "input_feat_per_channel", "feature_size", "input_dim", "feat_dim")
    # Where no field tells, its first layer does.
    layers = (part for part in model.modules() if isinstance(part, nn.Linear | nn.Conv1d))
    mel = size_in(config, names, 0) or first_channels(next(layers, None)) or 80
    found = []
    if "input_features" in taken:
        length = 2 * size_in(config, ("max_source_positions",), SIDE)
        shapes = ((BATCH, mel, length), (BATCH, 2 * SIDE, mel), (BATCH, mel, 2 * SIDE))
        found += [{"input_features": noise(*shape)} for shape in shapes]
    if "input_values" in taken:
        length = size_in(config, ("max_length",), 1024)
        shapes = ((BATCH, SAMPLES), (BATCH, 1, SAMPLES), (BATCH, length, mel))
        found += [{"input_values": noise(*shape)} for shape in shapes]
    return found


def first_channels(layer: nn.Module | None) -> int:
    """Return how many channels a layer is given; 0 for none."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    return layer.in_channels if isinstance(layer, nn.Conv1d) else 0


def series_inputs(config: Any, taken: Any) -> list[dict[str, Tensor]]:
    """Return a time series, where a model takes one."""
    if "past_values" not in taken:
        return []
    length, channels = size_in(config, ("context_length",), 24), size_in(config, ("num_input_channels",), 1)
    return [{"past_values": noise(BATCH, length, channels)}, {"past_values": noise(BATCH, length)}]


def first_of(config: Any, names: tuple[str, ...]) -> Any:
    """Return the first size of some names in a config, or in the configs inside it."""
    waiting = [config]
    while waiting:
        here = waiting.pop(0)
        for name in names:
            value = getattr(here, name, None)
            if (type(value) is int and value > 0) or (isinstance(value, tuple | list) and value):
                return value
        waiting += [value for value in vars(here).values() if hasattr(value, "to_dict")]
    return None


def size_in(config: Any, names: tuple[str, ...], default: int) -> int:
    """Return the first number of some names in a config, or in the configs inside it."""
    value = first_of(config, names)
    value = value[0] if isinstance(value, tuple | list) else value
    return value if type(value) is int else default


def plain_inputs(model: nn.Module) -> Iterator[Inputs]:
    """Yield inputs for a model without a config."""
    described: Any = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    size = (
        described.get("input_size") if isinstance(described, dict) else getattr(described, "input_size", None)
    )
    if size is not None:
        yield (noise(BATCH, *size),)
    if isinstance(model, nn.Transformer):
        yield (noise(BATCH, TOKENS, model.d_model), noise(BATCH, TOKENS, model.d_model))
    kinds = (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Linear, nn.MultiheadAttention)
    parts = [part for part in model.modules() if isinstance(part, kinds)]
    vocabularies = [part.num_embeddings for part in parts if isinstance(part, nn.Embedding)]
    if vocabularies:
        for length in (TOKENS, TOKENS // 2, 4, 2):
            yield (tokens(min(vocabularies), length),)
            yield (tokens(min(vocabularies), length), tokens(min(vocabularies), length, seed=1))
    for part in parts[:1] if not vocabularies else ():
        yield from inputs_of(model, part)


def inputs_of(model: nn.Module, first: nn.Module) -> Iterator[tuple[Tensor, ...]]:
    """Yield inputs for a model that begins with a layer."""
    if isinstance(first, nn.Conv2d):
        for side in (SIDE, 8, 64, 224):
            yield (noise(BATCH, first.in_channels, side, side),)
    elif isinstance(first, nn.Conv1d):
        yield (noise(BATCH, first.in_channels, SAMPLES),)
    else:
        width: Any = first.embed_dim if isinstance(first, nn.MultiheadAttention) else None
        width = first.in_features if isinstance(first, nn.Linear) else width
        if any(
            isinstance(part, nn.TransformerDecoder | nn.TransformerDecoderLayer) for part in model.modules()
        ):
            yield (noise(BATCH, TOKENS, width), noise(BATCH, TOKENS, width))
        if any(isinstance(part, nn.MultiheadAttention) for part in model.modules()):
            yield (noise(BATCH, TOKENS, width),)
        yield (noise(BATCH, width),)
        yield (noise(BATCH, TOKENS, width),)
