"""The word for a layer in a recipe: the name of one of ours, the import path of a user's own."""

import sys
from typing import Any

from ..errors import InputError, did_you_mean
from ._base import DropoutLayer


def word_for(layer: type[DropoutLayer]) -> str:
    """Return the word that recipes on disk have for a layer: ``Dropout``, or ``my_package.layers:Mine``."""
    return (
        layer.__name__ if ours().get(layer.__name__) is layer else f"{layer.__module__}:{layer.__qualname__}"
    )


def layer_for(word: str) -> type[DropoutLayer]:
    """Return the layer that a word names.

    A user's own must have been imported. Nothing is imported here, not even by a module that loads its names
    when asked, since recipes come from files and a file must not decide what code runs.

    Raises:
        InputError: for a word that names no layer, or one that is not there yet.
    """
    if ":" not in word:
        if word not in ours():
            own = " A layer of your own is written module:Class." if "." in word else ""
            raise InputError(f"There is no layer {word!r}.{did_you_mean(word, ours())}{own}")
        return ours()[word]
    module, _, path = word.partition(":")
    if "<locals>" in path:
        raise InputError(
            f"The layer {word!r} was defined inside a function, where nothing can find it again; define it "
            "at the top of a module."
        )
    if module not in sys.modules:
        raise InputError(
            f"The recipe names the layer {word!r}, and a recipe imports nothing; write import {module} "
            "before it is read."
        )
    found: Any = sys.modules[module]
    for name in path.split("."):
        found = getattr(found, "__dict__", {}).get(name)
    if not (isinstance(found, type) and issubclass(found, DropoutLayer)):
        raise InputError(
            f"{module} has no layer {path!r}; a layer is a class that inherits from td.layers.DropoutLayer."
        )
    return found


def ours() -> dict[str, type[DropoutLayer]]:
    """Return the project's layers by name."""
    from .. import layers

    return {name: getattr(layers, name) for name in layers.__all__}
