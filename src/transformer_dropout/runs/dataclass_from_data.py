"""From plain data to frozen dataclasses, with one clear sentence for what does not fit."""

from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ..errors import InputError, did_you_mean
from ..yaml_file import KeyPath
from .strict_types import refuse_loose

T = TypeVar("T")

# On a dataclass: refuse keys it does not have.
STRICT_KEYS = ConfigDict(extra="forbid")


def dataclass_from_data(kind: type[T], data: Any, places: dict[KeyPath, str], within: KeyPath = ()) -> T:
    """Return the dataclass that plain data describes.

    Args:
        kind: a dataclass.
        data: mappings, lists and scalars.
        places: where each key stands, for messages.
        within: the key path that the data stand at.

    Raises:
        InputError: for an unknown key, naming the nearest known one, or a value of the wrong type.
    """
    refuse_loose(kind, data, places, within)
    try:
        return TypeAdapter(strict(kind)).validate_python(data)
    except ValidationError as error:
        raise InputError(sentence(kind, error.errors()[0], places, within)) from None


def strict(kind: type[T]) -> type[T]:
    """Return a dataclass that refuses unknown keys, as those of a user's own task may not say themselves."""
    if not hasattr(kind, "__pydantic_config__"):
        kind.__pydantic_config__ = STRICT_KEYS  # type: ignore[attr-defined]
    return kind


def sentence(kind: type, problem: Any, places: dict[KeyPath, str], within: KeyPath) -> str:
    """Return what is wrong with one value, where, and what to write."""
    inside: KeyPath = problem["loc"]
    path = (*within, *inside)
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        # A check of several keys names its own at the beginning of the sentence.
        named = tuple(str(cause).split(" ")[0].split("."))
        return f"{places[named]}: {cause}" if named in places else str(cause)
    place = f"{places[path]}: " if path in places else ""
    name = ".".join(str(part) for part in path)
    if problem["type"] == "unexpected_keyword_argument":
        known = [field.name for field in fields(owner(kind, inside[:-1]))]
        return f"{place}unknown key {name!r}.{did_you_mean(str(path[-1]), known)}"
    if problem["type"] in ("missing", "missing_argument"):
        return f"{place}the key {name!r} is missing."
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{place}{name} is {problem['input']!r}, but {message.replace('input', 'it')}."


def owner(kind: Any, path: KeyPath) -> Any:
    """Return the dataclass that a key path inside another leads to."""
    for part in path:
        annotation = next(field.type for field in fields(kind) if field.name == part)
        choices = [annotation, *get_args(annotation)]
        kind = next(choice for choice in choices if is_dataclass(choice))
    return kind
