"""What the site adds to the pages in this folder: its home, the reference, the gallery and the notebooks.

A hook of mkdocs, named in ``mkdocs.yml``; ``mkdocs build`` is strict, so a broken link stops it.
"""

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import transformer_dropout as td

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    made = {
        "index.md": home(),
        "reference.md": reference(),
        "gallery.md": gallery(),
        **{f"notebooks/{file.stem}.md": notebook(file) for file in notebooks()},
    }
    for name, words in made.items():
        files.append(File.generated(config, name, content=words))
    for file in notebooks():
        found = files.get_file_from_path(f"notebooks/{file.name}")
        if found is not None:
            files.remove(found)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Name what a link finds outside of this folder by its place in the repository."""
    folder = (DOCS / page.file.src_uri).parent

    def placed(match: re.Match) -> str:
        target = (folder / match[2]).resolve()
        if target.is_relative_to(DOCS):
            return match[0].replace(".ipynb)", ".md)")
        if not target.exists():
            raise PluginError(f"{page.file.src_uri} links {match[2]}, which is not there.")
        place = target.relative_to(ROOT).as_posix()
        return match[1] if place in match[1] else f"{match[1]} (`{place}`)"

    return LINK.sub(placed, markdown)


def home() -> str:
    """Return the README with its links as seen from this folder."""
    words = (ROOT / "README.md").read_text(encoding="utf-8")
    return LINK.sub(lambda match: f"[{match[1]}]({seen_from_docs(match[2])}{match[3] or ''})", words)


def seen_from_docs(target: str) -> str:
    """Return a path of the README's folder as a path of this one."""
    return target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}"


def public_names() -> Iterator[tuple[str, Any]]:
    """Yield the public names with what they stand for.

    Raises:
        PluginError: for one without a docstring.
    """
    for name in td.__all__:
        value = getattr(td, name)
        if not inspect.getdoc(value):
            raise PluginError(f"transformer_dropout.{name} has no docstring.")
        yield name, value


def reference() -> str:
    """Return one page with the docstring of every public name, by where it comes from."""
    rooms: dict[str, list[str]] = {}
    modules = []
    for _, value in public_names():
        if isinstance(value, ModuleType):
            modules.append(value.__name__)
            continue
        room = value.__module__.split(".")[1]
        rooms.setdefault(room, []).append(f"{value.__module__}.{value.__qualname__}")
    parts = ["# Reference", "Users write `import transformer_dropout as td`; each name below is one of `td`."]
    for room in sorted(rooms):
        parts += [f"## {room.replace('_', ' ').capitalize()}", *(entry(path) for path in rooms[room])]
    # A room whose names are public by themselves stands above already.
    for path in modules:
        if path.rpartition(".")[2] not in rooms:
            parts += [f"## `td.{path.rpartition('.')[2]}`", f"::: {path}"]
    return "\n\n".join(parts) + "\n"


def entry(path: str) -> str:
    """Return the line that mkdocstrings turns into the documentation of one object."""
    return f"::: {path}\n    options:\n      heading_level: 3"


def gallery() -> str:
    """Return every figure with the page that explains it."""
    pages = {page: page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md"))}
    parts = ["# Gallery", "Each figure was drawn by running what it shows."]
    for figure in sorted((DOCS / "figures").glob("*.svg")):
        shown = [page for page, words in pages.items() if f"figures/{figure.name})" in words]
        if not shown:
            raise PluginError(f"{figure.name} is on no page.")
        place = shown[0].relative_to(DOCS).as_posix()
        title = pages[shown[0]].splitlines()[0].removeprefix("# ")
        parts.append(f"## [{title}]({place})\n\n![{title}](figures/{figure.name})")
    return "\n\n".join(parts) + "\n"


def notebooks() -> list[Path]:
    """Return the notebooks' files."""
    return sorted((DOCS / "notebooks").glob("*.ipynb"))


def notebook(file: Path) -> str:
    """Return a notebook as a page: text, code, and what the code printed."""
    parts = []
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        printed = "".join("".join(output.get("text", [])) for output in cell["outputs"])
        if printed:
            parts.append(f"```text\n{printed.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"
