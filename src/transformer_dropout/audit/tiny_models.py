"""Tiny random models of Hugging Face families, built in a second without a network or weights."""

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError, did_you_mean, first_line
from ..json_file import read_object
from ..sites._own_inputs import usable_inputs
from ._configured import dropout_fields
from .tiny_configs import BLOCKS, TINY, TOKENS, shrunk

ENCODERS = ("bert", "roberta", "distilbert", "electra", "albert", "deberta-v2", "modernbert")
ENCODER_DECODERS = ("t5", "bart")
DECODERS = (
    "gpt2",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "phi",
    "phi3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "olmo2",
    "granite",
    "mixtral",
    "gpt_neox",
    "opt",
    "bloom",
    "mpt",
    "gptj",
    "gpt_oss",
    "smollm3",
    "stablelm",
    "starcoder2",
    "cohere",
    "nemotron",
    "glm",
)
FAMILIES = (*DECODERS, *ENCODERS, *ENCODER_DECODERS)

# Sizes that would contradict the tiny ones.
OTHERS = {"gpt_oss": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}}
# Keys of a stored config that concern stored weights and code.
HEADS = (
    *("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "CAUSAL_LM", "SEQUENCE_CLASSIFICATION", "MASKED_LM"),
    *("IMAGE_CLASSIFICATION", "AUDIO_CLASSIFICATION", "CTC", "IMAGE_TEXT_TO_TEXT", "VIDEO_CLASSIFICATION"),
    *("OBJECT_DETECTION", "UNIVERSAL_SEGMENTATION", "SEMANTIC_SEGMENTATION", "DEPTH_ESTIMATION"),
)
# Parameters of a model that is still called tiny.
LARGEST = 40_000_000
LEFT_OUT = ("dtype", "torch_dtype", "quantization_config", "auto_map", "transformers_version")


def tiny_model(source: str | Path, *, attention: str | None = None, **fields: float | None) -> nn.Module:
    """Build a tiny random model: 2 blocks, width 32, 4 heads, vocabulary 64; the same at every call.

    Args:
        source: a family, such as ``"llama"``: any model type that transformers knows; or the path of a
            ``config.json``, which is shrunk.
        attention: ``"eager"``, ``"sdpa"`` or another implementation; the family's own default without.
        fields: dropout fields of the config, such as ``attention_dropout=0.1``. A field of a config inside
            the config is found by its name.

    Returns:
        A classifier for encoders and a language model for others, unless the ``config.json`` names another
        class; in evaluation mode.

    Raises:
        InputError: for an unknown family or field, a config with remote code, or a rate that is none.
    """
    import transformers

    stored = read_config(Path(source)) if is_path(source) else {"model_type": str(source)}
    family = str(stored["model_type"])
    if family not in transformers.CONFIG_MAPPING:
        near = difflib.get_close_matches(family.lower(), (*FAMILIES, *known_types()), n=3, cutoff=0.0)
        raise InputError(f"The family {family!r} is unknown; the nearest are {', '.join(near)}.")
    shrink = shrunk_config if family in FAMILIES else deeply_shrunk_config
    config = shrink(transformers.CONFIG_MAPPING[family], stored)
    set_fields(config, fields)
    model_class = class_of(family, stored)
    options = {} if attention is None else {"attn_implementation": attention}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            refuse_large(model_class, config)
            # The name of a class of transformers itself was chosen, so no code from elsewhere can run.
            return model_class._from_config(config, **options).eval()
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"No tiny model of {family} could be built: {first_line(error)}") from error


def is_path(source: str | Path) -> bool:
    """Return whether a source is a file rather than a family."""
    return isinstance(source, Path) or source.endswith(".json") or "/" in source


def read_config(path: Path) -> dict[str, Any]:
    """Read a ``config.json``.

    Raises:
        InputError: when there is none, or when it names remote code.
    """
    config = read_object(path, hint="give the config.json of a Hugging Face model")
    if not isinstance(config.get("model_type"), str):
        raise InputError(f"{path} names no model_type; give the config.json of a Hugging Face model.")
    refuse_remote_code(config, path)
    return config


def refuse_remote_code(config: Mapping[str, Any], path: Path) -> None:
    """Raise InputError when a config asks for code that is not part of transformers."""
    if config.get("auto_map"):
        raise InputError(
            f"{path} asks for remote code (auto_map), which is never executed; audit the model from your own "
            "code with td.audit(model, inputs), or take auto_map out if transformers has the model itself."
        )
    for key, value in config.items():
        if isinstance(value, Mapping):
            refuse_remote_code(value, path)
        elif key.endswith("_implementation") and "/" in str(value):
            raise InputError(
                f"{path} asks for a kernel from elsewhere ({key}: {value}), which is never loaded; take it "
                "out, or choose one with --attention."
            )


def saved_model(folder: Path, *, attention: str | None = None) -> nn.Module:
    """Load a Hugging Face model from a folder, with the head that it was saved with; never remote code.

    Raises:
        InputError: when the folder holds no such model.
    """
    import transformers

    stored = read_config(folder / "config.json")
    family = stored["model_type"]
    if family not in transformers.CONFIG_MAPPING:
        raise InputError(
            f"{folder} holds a model of the family {family!r}, which transformers does not know."
        )
    options = {} if attention is None else {"attn_implementation": attention}
    try:
        return class_of(family, stored).from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:
        raise InputError(f"The model in {folder} could not be loaded: {first_line(error)}") from error


def shrunk_config(config_class: type, stored: Mapping[str, Any]) -> Any:
    """Return a config with tiny sizes and all else as stored, or as the class has it."""
    known = {field.name: field.default for field in dataclasses.fields(config_class)}
    values = {key: value for key, value in stored.items() if key not in LEFT_OUT}
    blocks = next((values[name] for name in BLOCKS if isinstance(values.get(name), int)), None)
    for name, value in values.items():
        if isinstance(value, list) and len(value) == blocks:
            # One entry a block: the first and the last kind of block stay.
            values[name] = [value[0], value[-1]]
    for name, value in TOKENS.items():
        given = values.get(name, known.get(name))
        if given is not None and (not isinstance(given, int) or given >= TINY["vocab_size"]):
            values[name] = value
    # A size that is unset follows from the others.
    values |= {name: size for name, size in TINY.items() if name in known}
    values |= OTHERS.get(stored["model_type"], {})
    try:
        return config_class.from_dict(values)
    except Exception as error:
        raise InputError(
            f"The config of {stored['model_type']} could not be shrunk: {first_line(error)}"
        ) from error


def deeply_shrunk_config(config_class: Any, stored: Mapping[str, Any]) -> Any:
    """Return a config with tiny sizes in it and in the configs inside it.

    Raises:
        InputError: when the small sizes contradict what else is in it.
    """
    try:
        whole = config_class.from_dict({k: v for k, v in stored.items() if k not in LEFT_OUT})
        return config_class.from_dict(shrunk(whole.to_dict()))
    except Exception as error:
        raise InputError(
            f"The config of {stored['model_type']} could not be shrunk: {first_line(error)}"
        ) from error


def refuse_large(model_class: Any, config: Any) -> None:
    """Raise InputError when a model stays large although its config was shrunk."""
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in model_class._from_config(config).parameters())
    if size > LARGEST:
        raise InputError(
            f"A tiny {model_class.__name__} would still have {size / 1e6:.0f} million parameters; build a "
            "small one yourself, and name the function that returns it as module:function."
        )


def known_types() -> list[str]:
    """Return every model type of transformers that a model belongs to."""
    from transformers.models.auto import modeling_auto

    return sorted(
        {kind for name in dir(modeling_auto) if name.endswith("MAPPING_NAMES") for kind in mapping(name)}
    )


def mapping(name: str) -> Mapping[str, Any]:
    """Return one of transformers' tables of heads."""
    from transformers.models.auto import modeling_auto

    return getattr(modeling_auto, name)


def set_fields(config: Any, fields: Mapping[str, float | None]) -> None:
    """Set dropout fields of a config, or of a config inside it.

    Raises:
        InputError: for a field that the config does not have, or a value that is no rate.
    """
    known = {name for name, _ in dropout_fields(config.to_dict())}
    for name, value in fields.items():
        matches = [field for field in known if field == name or field.rpartition(".")[2] == name]
        if not matches:
            raise InputError(f"{config.model_type} has no dropout field {name!r}.{did_you_mean(name, known)}")
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"{name} is {value}, but a probability of dropping lies between 0 and 1.")
        for match in matches:
            *path, last = match.split(".")
            owner = config
            for part in path:
                owner = owner[part] if isinstance(owner, dict) else getattr(owner, part)
            if isinstance(owner, dict):
                owner[last] = value
            else:
                # Past the type check: MPT declares its rate an int, which no rate but 0 and 1 is.
                vars(owner)[last] = value


def class_of(family: str, stored: Mapping[str, Any]) -> Any:
    """Return the model class: the one that a config names, else the family's usual head."""
    import transformers

    named = next(iter(stored.get("architectures") or ()), None)
    found = None if named is None else getattr(transformers, str(named), None)
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return found
    order = ("SEQUENCE_CLASSIFICATION",) if family in ENCODERS else HEADS
    for table in (*(f"MODEL_FOR_{head}_MAPPING_NAMES" for head in order), "MODEL_MAPPING_NAMES"):
        if family in mapping(table):
            name: Any = mapping(table)[family]
            return getattr(transformers, name if isinstance(name, str) else name[0])
    raise InputError(f"transformers has no model of the family {family}.")


def tiny_inputs(model: nn.Module, *, batch: int = 2, tokens: int = 12) -> Any:
    """Return small inputs for a model, the same at every call: random tokens, images or sounds.

    Raises:
        InputError: for a model that says nothing of itself.
    """
    config: Any = getattr(model, "config", None)
    vocabulary = getattr(config, "vocab_size", None)
    text = getattr(model, "main_input_name", "input_ids") == "input_ids" and isinstance(vocabulary, int)
    if not text or getattr(config, "model_type", None) not in FAMILIES:
        return usable_inputs(model)
    assert isinstance(vocabulary, int)
    generator = torch.Generator().manual_seed(0)
    # Above the ids that mean padding, beginning and end.
    ids = torch.randint(min(4, vocabulary - 1), vocabulary, (2, batch, tokens), generator=generator)
    inputs = {"input_ids": ids[0], "attention_mask": torch.ones_like(ids[0])}
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids[1]
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return {name: tensor.to(device) for name, tensor in inputs.items()}
