"""The running interpreter's own standard library as a corpus: no download, and every machine has it."""

import ast
import hashlib
import importlib.util
import os
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from transformer_dropout.errors import InputError

from .documents import Corpus, Document, with_text

_SKIPPED_FOLDERS = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "lib-dynload",
}
# These record how this one interpreter was compiled: paths and flags of a machine, no prose.
_SKIPPED_PREFIXES = ("_sysconfigdata", "config-")


def stdlib_corpus(part: Literal["docs", "code"], folder: Path | None = None) -> Corpus:
    """Find the standard library's modules without its tests.

    Args:
        part: ``docs`` gives the docstrings of each module, ``code`` its source.
        folder: another folder of modules than the running interpreter's.

    Raises:
        InputError: when the interpreter has no folder of Python sources.
    """
    folder = folder or Path(sysconfig.get_path("stdlib"))
    files = sorted(_module_files(folder))
    if not files:
        raise InputError(
            f"This Python has no standard library sources in {folder}: use --set data.source=YOUR_FILE.txt"
        )
    sources = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    digest = hashlib.sha256(f"stdlib-{part} {platform.python_version()}".encode())
    for name, source in sources.items():
        digest.update(f"\n{name} {len(source)}\n".encode())
        digest.update(source)
    return Corpus(fingerprint=digest.hexdigest(), read=partial(_documents, sources, part))


def _module_files(folder: Path) -> Iterator[Path]:
    for current, folders, files in os.walk(folder):
        # Pruned in place, so that site-packages is not even listed.
        folders[:] = [name for name in folders if _wanted(name)]
        yield from (Path(current, name) for name in files if name.endswith(".py") and _wanted(name))


def _wanted(name: str) -> bool:
    return name not in _SKIPPED_FOLDERS and not name.startswith(_SKIPPED_PREFIXES)


def _documents(sources: dict[str, bytes], part: Literal["docs", "code"]) -> list[Document]:
    documents = []
    for name, source in sources.items():
        tree = _parse(source)
        if tree is not None:
            text = _docstrings(tree) if part == "docs" else importlib.util.decode_source(source)
            documents.append(Document(name, text))
    return with_text(documents, f"stdlib-{part}")


def _parse(source: bytes) -> ast.Module | None:
    """Return the syntax tree, or None for a file this Python cannot parse (a template, another version)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own invalid escapes are not the user's to fix
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError):
            return None


def _docstrings(tree: ast.Module) -> str:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, documented)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))  # ast.walk goes level by level
    return "\n\n".join(text for node in nodes if (text := ast.get_docstring(node)))
