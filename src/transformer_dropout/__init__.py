"""See, control, learn and prove dropout and its rivals on transformers.

Users write ``import transformer_dropout as td``. Nothing is loaded until a name is asked for (PEP 562), then
nothing but torch. The public names stand in ``__init__.pyi``, where type checkers and editors read them too.
"""

import ast
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

__version__ = "0.1.0"


def _homes() -> dict[str, str]:
    """Return each public name with the module, relative to this one, that it is imported from."""
    public = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in public.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: f".{node.module or ''}" for node in imports for alias in node.names}


_HOMES = _homes()
# What needs more than torch is found by its name, and not brought by a star.
__all__ = sorted(name for name, home in _HOMES.items() if not home.startswith((".compare", ".runs")))


class _Package(ModuleType):
    """This package as a module that keeps its functions.

    Python sets every package inside this one as an attribute once it is imported; `audit` is to stay the
    function although it lies in a package of that name.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and _HOMES.get(name, ".") != "."):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    if home == ".":
        return importlib.import_module(f".{name}", __name__)
    value = getattr(importlib.import_module(home, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
