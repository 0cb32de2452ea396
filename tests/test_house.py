"""The rules of the house, read from the source: what is loaded, who imports whom, how long things are."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import transformer_dropout

PACKAGE = Path(transformer_dropout.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
BENCHMARKS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))

# A file imports from its own floor and from lower ones. The package's own __init__ shows users the rooms.
FLOORS = {
    "errors": 0,
    "functional": 0,
    "json_file": 0,
    "kernels": 0,
    "notebook": 0,
    "schedule_data": 0,
    "schedules": 0,
    "tensor_file": 0,
    "yaml_file": 0,
    "layers": 1,
    "terms": 1,
    "sites": 2,
    "recipe": 3,
    "recipes": 3,
    "audit": 4,
    "surgery": 4,
    "integrations": 5,
    "runs": 5,
    "tasks": 6,
    "compare": 6,
    "cli": 7,
    "__main__": 7,
}


def name_of(file):
    return str(file.relative_to(PACKAGE if file in FILES else PACKAGE.parents[1]))


def loaded_after(statement):
    """Return the top-level modules that a fresh interpreter has loaded after a statement."""
    code = (
        f"{statement}; import json, sys; print(json.dumps(sorted({{n.split('.')[0] for n in sys.modules}})))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_importing_the_package_loads_nothing_and_its_names_nothing_but_torch():
    extra = loaded_after("import transformer_dropout") - loaded_after("pass")
    assert extra - set(sys.stdlib_module_names) == {"transformer_dropout"}
    extra = loaded_after("from transformer_dropout import *") - loaded_after("import torch")
    assert extra - set(sys.stdlib_module_names) == {"transformer_dropout"}


def test_the_help_of_the_command_loads_no_torch():
    help_page = "import sys; sys.argv = ['dropout', '--help']; from transformer_dropout.cli import app"
    loaded = loaded_after(f"{help_page}; app(standalone_mode=False)")
    assert {"typer", "rich"} <= loaded and not loaded & {"torch", "numpy", "yaml", "pydantic"}


@pytest.mark.parametrize("name", ["audit", "compare"])
def test_importing_a_package_leaves_the_function_of_its_name(name):
    loaded_after(
        f"import transformer_dropout.{name} as found, transformer_dropout as td; assert callable(found)"
    )


@pytest.mark.parametrize("name", transformer_dropout.__all__)
def test_every_public_name_is_there_and_listed(name):
    assert getattr(transformer_dropout, name) is not None
    assert name in dir(transformer_dropout)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'dropuot'"):
        _ = transformer_dropout.dropuot


def room_of(parts):
    """Return the first part of a module's path inside the package, without the file's ending."""
    return parts[0].removesuffix(".py")


def imported_rooms(file):
    """Return the rooms of the package that a file imports, each with its line."""
    package = file.relative_to(PACKAGE.parent).parent.parts
    rooms = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += (node.module or "").split(".") if node.module else []
            targets = [[*base, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        else:
            continue
        rooms += [(t[1], node.lineno) for t in targets if t[0] == PACKAGE.name and len(t) > 1]
    return rooms


def floor_of(room, place):
    if room not in FLOORS:
        pytest.fail(f"{place}: {room!r} has no floor; give it one in FLOORS of {Path(__file__).name}.")
    return FLOORS[room]


@pytest.mark.parametrize("file", [file for file in FILES if file != PACKAGE / "__init__.py"], ids=name_of)
def test_imports_go_down_the_floors_only(file):
    own = floor_of(room_of(file.relative_to(PACKAGE).parts), name_of(file))
    for room, line in imported_rooms(file):
        # What the package's __init__ exports stands above every floor but the last.
        place = f"{name_of(file)}:{line}"
        floor = 7 if room in exported() else floor_of(room, place)
        assert floor <= own, f"{place} imports {room}, which is on floor {floor}, above floor {own}"


def exported():
    return {"__version__", *transformer_dropout.__all__} - FLOORS.keys()


def test_every_floor_is_still_inhabited():
    rooms = {room_of(file.relative_to(PACKAGE).parts) for file in FILES} - {"__init__"}
    assert FLOORS.keys() <= rooms


def test_the_reader_of_imports_sees_every_form(tmp_path, monkeypatch):
    file = tmp_path / "transformer_dropout" / "sites" / "x.py"
    file.parent.mkdir(parents=True)
    lines = [
        "import torch, transformer_dropout.recipe",
        "from transformer_dropout.cli import main",
        "from transformer_dropout import regularize",
        "from .. import functional",
        "from ..layers._base import DropoutLayer",
        "from ._site import Site",
        "def late():",
        "    from ..compare import report",
    ]
    file.write_text("\n".join(lines))
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path / "transformer_dropout")
    rooms = ["recipe", "cli", "regularize", "functional", "layers", "sites", "compare"]
    assert sorted(imported_rooms(file)) == sorted(zip(rooms, [1, 2, 3, 4, 5, 6, 8], strict=True))


@pytest.mark.parametrize("file", [*FILES, *BENCHMARKS], ids=name_of)
def test_no_file_is_longer_than_350_lines(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 350


@pytest.mark.parametrize("file", [*FILES, *BENCHMARKS], ids=name_of)
def test_no_function_is_long_and_no_constructor_takes_many_arguments(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        place = f"{name_of(file)}:{node.lineno} {node.name}"
        assert node.end_lineno - node.lineno < 60, f"{place} is longer than 60 lines"
        if node.name == "__init__":
            arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            assert len(arguments) <= 9, f"{place} takes {len(arguments)} arguments"


# What is the same thing in another framework has the same name there.
OTHER_FRAMEWORKS = {"keras.py", "lightning.py", "_lightning_trial.py"}


def classes_of_one_name(files):
    """Return the names that classes of several files share, each with those files."""
    found = {}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(file.name)
    return {name: places for name, places in found.items() if len(places) > 1}


def test_no_two_classes_have_one_name():
    assert classes_of_one_name([file for file in FILES if file.name not in OTHER_FRAMEWORKS]) == {}
    assert classes_of_one_name([file for file in FILES if file.name in OTHER_FRAMEWORKS]) == {}


def test_two_classes_of_one_name_are_found(tmp_path):
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text(f"class Place:\n    class Only{name[0].upper()}: ...\n")
    assert classes_of_one_name(sorted(tmp_path.iterdir())) == {"Place": ["a.py", "b.py"]}
