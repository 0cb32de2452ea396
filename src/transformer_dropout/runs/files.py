"""Writing files so that a kill at any moment leaves the old or the new one, never half of one."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InputError


def write_atomically(path: Path, text: str) -> None:
    """Write a text file beside its place and move it there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, data: Any) -> None:
    """Write data as JSON, atomically."""
    write_atomically(path, json.dumps(data, indent=1) + "\n")


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write named tensors as safetensors.

    Raises:
        OSError: when the disk is full; the library has an exception of its own for that.
    """
    try:
        save_file(apart(tensors), path, metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of which no two share memory, as tied weights do; the format knows no sharing."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        whole = tensor.contiguous()
        place = whole.untyped_storage().data_ptr()
        separate[name] = whole.clone() if place in seen else whole
        seen.add(place)
    return separate


def flush_to_disk(folder: Path) -> None:
    """Ask the system to write a folder and the files in it to the disk."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def clear_write_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into one sentence.

    Raises:
        InputError: in place of the OSError.
    """
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(
            f"Cannot write to {folder}: {reason}; what was complete is kept. Make room or choose another "
            "folder with --out, then run the same command with --resume."
        ) from None
