"""JSON files of ours and of others: an object, or one sentence."""

import json
from pathlib import Path
from typing import Any

from .errors import InputError


def read_object(path: Path, *, hint: str) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Args:
        path: the file.
        hint: what to do when it is damaged.

    Raises:
        InputError: when it cannot be read, is not JSON, or holds anything but an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"{path} cannot be read ({reason}): {hint}.") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not valid JSON: {hint}.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object: {hint}.")
    return content
