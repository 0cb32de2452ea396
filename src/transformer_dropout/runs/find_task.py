"""From a task's name to the task: one of the package's, a module's, or a file's of the user."""

import importlib
import importlib.util
import pkgutil
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import InputError, did_you_mean
from .task import Task

HOME = "transformer_dropout.tasks"
PARTS = ("item", "metrics", "Model", "Data", "prepare", "build", "batch", "loss", "score")


@lru_cache(maxsize=64)
def find_task(name: str) -> Task:
    """Return the task of a name.

    Args:
        name: one of the package's (``images``), or ``my_package.my_task`` or ``my_task.py``, with ``:Name``
            behind it where the module holds more than one task.

    Raises:
        InputError: when there is none, or it lacks a part.
    """
    place, _, chosen = name.partition(":")
    module = module_of(place)
    if chosen:
        kind = getattr(module, chosen, None)
        if not isinstance(kind, type):
            raise InputError(f"{place} has no class {chosen!r}.{did_you_mean(chosen, classes_of(module))}")
        missing = [part for part in PARTS if not hasattr(kind, part)]
        if missing:
            raise InputError(f"{name} is no task: it lacks {', '.join(missing)}. docs/tasks.md shows one.")
        return kind()
    tasks = [kind for kind in classes_of(module).values() if all(hasattr(kind, part) for part in PARTS)]
    if len(tasks) != 1:
        found = ", ".join(kind.__name__ for kind in tasks) or "none"
        raise InputError(f"{place} holds {len(tasks)} tasks ({found}); name one: {place}:NAME.")
    return tasks[0]()


def classes_of(module: ModuleType) -> dict[str, Any]:
    """Return the classes that a module, or the package it is, defines."""
    return {
        name: kind
        for name, kind in vars(module).items()
        if isinstance(kind, type) and kind.__module__.startswith(module.__name__)
    }


def module_of(place: str) -> ModuleType:
    """Import the module of a task.

    Raises:
        InputError: when there is none, or a module that it imports is missing.
    """
    if place.endswith(".py"):
        return module_of_file(Path(place))
    own = place.isidentifier() and importlib.util.find_spec(f"{HOME}.{place}") is not None
    if own:
        return importlib.import_module(f"{HOME}.{place}")
    if "." not in place:
        found = (module.name for module in pkgutil.iter_modules(importlib.import_module(HOME).__path__))
        known = [name for name in found if not name.startswith("_")]
        raise InputError(f"There is no task {place!r}.{did_you_mean(place, known)}")
    # As `python -m` does: modules beside the user come first.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(place)
    except ImportError as error:
        raise InputError(f"The task {place} cannot be imported: {error}.") from None


def module_of_file(path: Path) -> ModuleType:
    """Import a task's file by its path; what lies beside it can be imported there.

    Raises:
        InputError: when it cannot be.
    """
    if not path.is_file():
        raise InputError(f"There is no file {path}; give the path of a task's file, as my_task.py.")
    if str(path.parent.resolve()) not in sys.path:
        sys.path.append(str(path.parent.resolve()))
    # A name that no other module has: the file may be called as one that is installed.
    spec = importlib.util.spec_from_file_location(f"task_file_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up while it runs.
    sys.modules[module.__name__] = module
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        raise InputError(f"The task {path} cannot be imported: {error}.") from None
    return module
