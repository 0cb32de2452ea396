"""Sections of a run config as plain data, such that older files keep their fingerprint."""

from dataclasses import fields, is_dataclass
from typing import Any

# The metadata of a key that older run configs lack: at its default it is left out of records.
NEWER = {"newer": True}


def to_plain(value: Any) -> Any:
    """Return a dataclass as plain mappings, lists and scalars."""
    if is_dataclass(value) and not isinstance(value, type):
        return {
            entry.name: to_plain(getattr(value, entry.name))
            for entry in fields(value)
            if not (entry.metadata.get("newer") and getattr(value, entry.name) == entry.default)
        }
    if isinstance(value, dict):
        return {key: to_plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(part) for part in value]
    return value
