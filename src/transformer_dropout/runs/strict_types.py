"""Plain data of exactly the types that a dataclass asks for: no quoted numbers, no yes for true, no NaN."""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..errors import InputError
from ..yaml_file import KeyPath

WORDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
NAMES = WORDS | {type(None): "null"}


def refuse_loose(kind: type, data: Any, places: Mapping[KeyPath, str], within: KeyPath) -> None:
    """Refuse values that a lenient reader would turn into the type asked for.

    Args:
        kind: a dataclass.
        data: what is to become one.
        places: where each key stands, for messages.
        within: the key path that the data stand at.

    Raises:
        InputError: for the first value of another type, and for a number that is not finite.
    """
    refuse_endless(data, places, within)
    if not isinstance(data, Mapping):
        return
    hints = get_type_hints(kind)
    for field in fields(kind):
        if field.name in data:
            refuse_other(hints[field.name], data[field.name], places, (*within, field.name))


def refuse_other(hint: Any, value: Any, places: Mapping[KeyPath, str], path: KeyPath) -> None:
    """Refuse one value, and those inside it, that would be turned into the type asked for."""
    choices = choices_of(hint)
    inner = next((choice for choice in choices if is_dataclass(choice)), None)
    items = next((get_args(choice)[0] for choice in choices if get_origin(choice) in (list, tuple)), None)
    values = next((get_args(choice)[1] for choice in choices if get_origin(choice) is dict), None)
    plain = [choice for choice in choices if choice in WORDS]
    if inner is not None and isinstance(value, Mapping):
        refuse_loose(inner, value, places, path)
    elif items is not None and isinstance(value, list):
        for index, item in enumerate(value):
            refuse_other(items, item, places, (*path, index))
    elif values is not None and isinstance(value, Mapping):
        for key, item in value.items():
            refuse_other(values, item, places, (*path, key))
    elif plain and not isinstance(value, Mapping | list) and not fits(value, choices):
        words = " or ".join(NAMES.get(choice, "a mapping") for choice in choices)
        hint = f"; write {int(value)}" if isinstance(value, float) and value == int(value) else ""
        raise InputError(f"{at(path, places)} is {value!r}, but it is {words}{hint}.")


def refuse_endless(data: Any, places: Mapping[KeyPath, str], path: KeyPath) -> None:
    """Refuse numbers that are infinite or none, and text with a NUL, which no path has, at any depth."""
    if isinstance(data, str) and "\0" in data:
        raise InputError(f"{at(path, places)} is {data[:40]!r}, which has a NUL in it; take it out.")
    if isinstance(data, float) and not math.isfinite(data):
        raise InputError(f"{at(path, places)} is {data}, but every number here is finite.")
    entries = data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, list) else ()
    for key, value in entries:
        refuse_endless(value, places, (*path, key))


def choices_of(hint: Any) -> tuple[Any, ...]:
    """Return the types that an annotation allows."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def fits(value: Any, choices: tuple[Any, ...]) -> bool:
    """Return whether a value is of one of the types; a whole number may stand for any number."""
    if isinstance(value, bool):
        return bool in choices
    return type(value) in choices or (isinstance(value, int) and float in choices)


def at(path: KeyPath, places: Mapping[KeyPath, str]) -> str:
    """Return a key with the place where it stands, if that is known."""
    name = ".".join(map(str, path))
    return f"{places[path]}: {name}" if path in places else name
