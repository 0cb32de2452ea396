"""``dropout audit``: what a model really drops, and what to put right."""

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from ..audit import Audit, ConfigField


COLUMNS = ("site", "kind", "operation", "config", "ran", "measured", "train / eval")


def audit(
    target: Annotated[
        str,
        typer.Argument(help="A family (gpt2), a config.json, a saved model's folder, or module:function."),
    ],
    attention: Annotated[
        str | None,
        typer.Option("--attention", metavar="NAME", help="The attention of a Hugging Face model, as eager."),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option("--ignore", metavar="CODE", help="A finding to accept; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Run a model once in training and once in evaluation, and show every random or mask operation.

    A family or a config.json is built tiny and random: seconds, no weights. A function returns a model, or
    a model and its inputs. Exit code 0: no findings; 1: findings; 2: bad input.

    Examples:

    - `dropout audit gpt2`
    - `dropout audit llama --attention eager --json`
    - `dropout audit models/mine/config.json --ignore dead-field`
    - `dropout audit my_package.model:build`
    """
    from ..audit import audit as audit_model

    opened = open_target(target, attention)
    result = audit_model(opened.model, opened.inputs, rebuild=opened.rebuild)
    accepted = set(ignore or ())
    result = replace(result, findings=tuple(f for f in result.findings if f.code not in accepted))
    if as_json:
        sys.stdout.write(result.to_json() + "\n")
    else:
        show(Console(), target, result)
    if result.findings:
        sys.exit(1)


def show(console: Console, target: str, result: "Audit") -> None:
    """Print an audit as tables."""
    _, rows = result.table()
    if rows:
        console.print(narrow_table(f"{target}: what ran", COLUMNS, [cells_of(row) for row in rows], fixed=2))
    else:
        console.print(f"{escape(target)}: no random or mask operation ran, in training or in evaluation.")
    if result.fields:
        fields = [(field.name, *field_cells(field)) for field in result.fields]
        console.print(narrow_table("Fields of the config", ("field", "value", "read at"), fields))
    for note in result.notes:
        console.print(f"note: {escape(note)}", soft_wrap=True, highlight=False)
    for finding in result.findings:
        place = escape(f"{finding.site or 'the model'}: {finding.message}")
        console.print(f"[yellow]{finding.code}[/yellow] at {place}", soft_wrap=True, highlight=False)
    if not result.findings:
        console.print("No findings.")


def field_cells(field: "ConfigField") -> tuple[str, str]:
    """Return value and readers of a config's field, as text."""
    value = "unset" if field.value is None else f"{field.value:.4g}"
    if field.read_at is None:
        return value, "cannot be told"
    return value, "\n".join(at or "(model)" for at in field.read_at) or "nothing"


def cells_of(row: Sequence[str]) -> tuple[str, ...]:
    """Return a row of an audit's table in the width of a terminal."""
    site, kind, operation, configured, resolved, measured, training, evaluation = row
    # The one long name among the operations would squeeze the paths.
    short = operation.replace("scaled_dot_product_attention", "sdpa")
    return site, kind, short, configured, resolved, measured, f"{training} / {evaluation}"


def narrow_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], fixed: int = 0) -> Table:
    """Return a table with few lines; after the first column, ``fixed`` ones are not folded."""
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=1 <= index <= fixed)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


@dataclass(frozen=True, kw_only=True)
class Target:
    """A model to look at.

    Attributes:
        model: the model.
        inputs: what it is called with.
        rebuild: makes it with other dropout fields, where it was built from a config.
    """

    model: "nn.Module"
    inputs: Any
    rebuild: Any = None


def open_target(target: str, attention: str | None = None) -> Target:
    """Build or load the model that a command line names.

    Args:
        target: a family, a ``config.json``, the folder of a saved model, or ``module:function``.
        attention: the implementation, for models of Hugging Face; None for their default.

    Raises:
        InputError: for anything else.
    """
    path = Path(target)
    if path.is_dir():
        return open_folder(path, attention)
    if ":" in target and not path.is_file():
        return call_function(target)
    return build_tiny(path if path.is_file() or target.endswith(".json") else target, attention)


def build_tiny(source: str | Path, attention: str | None) -> Target:
    """Build a tiny model of a family or a config."""
    from ..audit.tiny_models import tiny_inputs, tiny_model

    def rebuild(fields: Mapping[str, float]) -> "nn.Module":
        return tiny_model(source, attention=attention, **fields)

    model = rebuild({})
    return Target(model=model, inputs=tiny_inputs(model), rebuild=rebuild)


def open_folder(folder: Path, attention: str | None) -> Target:
    """Load a saved model: one that `dropout train` wrote, or one of Hugging Face."""
    from ..audit.tiny_models import read_config, saved_model, tiny_inputs
    from ..tasks.language.saved_model import MODEL_TYPE, load_model

    folder = folder / "model" if (folder / "model" / "config.json").is_file() else folder
    if read_config(folder / "config.json")["model_type"] == MODEL_TYPE:
        import torch

        model, _ = load_model(folder)
        tokens = torch.arange(2 * model.config.context).reshape(2, -1) % model.vocabulary_size
        return Target(model=model, inputs=(tokens,))
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        return build_tiny(folder / "config.json", attention)
    model = saved_model(folder, attention=attention)
    return Target(model=model, inputs=tiny_inputs(model))


def call_function(target: str) -> Target:
    """Call a function of the user's that returns a model, or a model and its inputs.

    Raises:
        InputError: when there is no such function, or it returns something else.
    """
    from torch import nn

    from ..audit.tiny_models import tiny_inputs

    module_name, _, function_name = target.partition(":")
    # As `python -m` does: modules beside the user come first.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{target} is no function: {error}. Write module:function, e.g. my_model:build."
        ) from None
    made = function()
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise InputError(f"{target} returned a {type(model).__name__}; return a model, or (model, inputs).")
    return Target(model=model, inputs=tiny_inputs(model) if inputs is None else inputs)
