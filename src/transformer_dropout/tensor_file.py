"""Safetensors files: exactly the tensors that are wanted, or one sentence."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .errors import InputError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file.

    Raises:
        InputError: for a file that is damaged or of another kind, or holds numbers that are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} cannot be read as safetensors: {' '.join(str(error).split())}.") from None
    for name, tensor in stored.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{path} is damaged: {name} holds numbers that are not finite.")
    return stored


def check_fit(path: Path, stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not those of a model.

    Args:
        path: the file that they were read from.
        stored: what it holds, by name.
        wanted: what it is to hold, and nothing else.

    Raises:
        InputError: for a tensor that is missing, too much, of another shape, or of whole numbers or complex
            ones where others belong; its precision may differ.
    """
    for name in sorted(wanted.keys() | stored.keys()):
        here, there = wanted.get(name), stored.get(name)
        if here is None or there is None or here.shape != there.shape:
            raise InputError(
                f"{path} does not fit the model: {name} is {shape_of(there)} in the file and "
                f"{shape_of(here)} in the model."
            )
        if here.dtype != there.dtype and not (here.is_floating_point() and there.is_floating_point()):
            raise InputError(
                f"{path} does not fit the model: {name} is of {there.dtype} in the file and of {here.dtype} "
                "in the model."
            )


def shape_of(tensor: Tensor | None) -> str:
    """Return a tensor's shape as text."""
    return "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
