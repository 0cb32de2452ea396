"""The model that a command line names, with inputs for it."""

import importlib
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, first_line

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Target:
    """A model to look at.

    Attributes:
        model: the model.
        inputs: what it is called with.
        rebuild: makes it with other dropout fields, where it was built from a config.
    """

    model: "nn.Module"
    inputs: Any
    rebuild: Any = None


def open_target(target: str, attention: str | None = None) -> Target:
    """Build or load the model that a command line names.

    Args:
        target: a family, a ``config.json``, the folder of a saved model, or ``module:function``.
        attention: the implementation, for models of Hugging Face; None for their default.

    Raises:
        InputError: for anything else, and for whatever goes wrong on the way, such as a broken installation.
    """
    try:
        return folder_or_code_or_family(target, attention)
    except InputError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "transformers":
            raise InputError(
                f"{target} is a model of transformers; run: pip install 'transformer-dropout[transformers]'"
            ) from None
        raise InputError(f"{target} could not be opened: {what_failed(error)}") from error


def what_failed(error: Exception) -> str:
    """Return an error in one sentence: its type, the first line of its message, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {first_line(error)}{where}"


def folder_or_code_or_family(target: str, attention: str | None) -> Target:
    """Build or load a model."""
    path = Path(target)
    if path.is_dir():
        return open_folder(path, attention)
    if ":" in target and not path.is_file():
        refuse_attention(target, attention)
        return call_function(target)
    return build_tiny(path if path.is_file() or target.endswith(".json") else target, attention)


def refuse_attention(target: str, attention: str | None) -> None:
    """Raise InputError for an attention of a model that does not let it be chosen."""
    if attention is not None:
        raise InputError(f"--attention chooses that of a Hugging Face model, and {target} is none.")


def build_tiny(source: str | Path, attention: str | None) -> Target:
    """Build a tiny model of a family or a config."""
    from ..audit.tiny_models import tiny_model

    def rebuild(fields: Mapping[str, float]) -> "nn.Module":
        return tiny_model(source, attention=attention, **fields)

    model = rebuild({})
    return Target(model=model, inputs=inputs_for(model), rebuild=rebuild)


def open_folder(folder: Path, attention: str | None) -> Target:
    """Load a saved model: one that `dropout train` wrote, or one of Hugging Face."""
    from ..audit.tiny_models import read_config, saved_model
    from ..tasks.language.saved_model import MODEL_TYPE, load_model

    folder = folder / "model" if (folder / "model" / "config.json").is_file() else folder
    if read_config(folder / "config.json")["model_type"] == MODEL_TYPE:
        import torch

        refuse_attention(str(folder), attention)
        model, _ = load_model(folder)
        tokens = torch.arange(2 * model.config.context).reshape(2, -1) % model.vocabulary_size
        return Target(model=model, inputs=(tokens,))
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        return build_tiny(folder / "config.json", attention)
    model = saved_model(folder, attention=attention)
    return Target(model=model, inputs=inputs_for(model))


def inputs_for(model: "nn.Module") -> Any:
    """Return inputs made from what a model says of itself.

    Raises:
        InputError: when it takes none of them.
    """
    from ..surgery.check import usable_inputs

    try:
        return usable_inputs(model)
    except InputError:
        raise InputError(
            f"No inputs are known for a {type(model).__name__}; name a function, module:function, that "
            "returns (model, inputs)."
        ) from None


def call_function(target: str) -> Target:
    """Call a function of the user's that returns a model, or a model and its inputs.

    Raises:
        InputError: when there is no such function, or it returns something else.
    """
    from torch import nn

    module_name, _, function_name = target.partition(":")
    # As `python -m` does: modules beside the user come first.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{target} is no function: {error}. Write module:function, e.g. my_model:build."
        ) from None
    made = function()
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise InputError(f"{target} returned a {type(model).__name__}; return a model, or (model, inputs).")
    return Target(model=model, inputs=inputs_for(model) if inputs is None else inputs)
