"""``dropout audit``: what a model really drops, and what to put right."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ..errors import InputError, check_choice
from .tables import print_table, table_console
from .target import Target, open_target, what_failed

if TYPE_CHECKING:
    from ..audit import Audit


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
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Also draw the model as a page."),
    ] = None,
) -> None:
    """Run a model once in training and once in evaluation, and show every random or mask operation.

    A family or a config.json is built tiny and random: seconds, no weights. A function returns a model, or
    a model and its inputs. Exit code 0: no findings; 1: findings; 2: bad input.

    Examples:

    - `dropout audit gpt2`
    - `dropout audit llama --attention eager --json`
    - `dropout audit bert --html report.html`
    - `dropout audit models/mine/config.json --ignore dead-field`
    - `dropout audit my_package.model:build`
    """
    from ..audit import CODES
    from ..audit import audit as audit_model

    for code in ignore or ():
        check_choice(code, CODES, "--ignore")
    opened = open_target(target, attention)
    try:
        result = audit_model(opened.model, opened.inputs, rebuild=opened.rebuild)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"The model of {target} could not be run: {what_failed(error)}. Inputs of your own come from a "
            "function that returns (model, inputs): module:function."
        ) from error
    accepted = set(ignore or ())
    result = replace(result, findings=tuple(f for f in result.findings if f.code not in accepted))
    if html is not None:
        write_page(html, result, opened, target)
    if as_json:
        sys.stdout.write(result.to_json() + "\n")
    else:
        show(table_console(), target, result)
    if result.findings:
        sys.exit(1)


def write_page(path: Path, result: "Audit", opened: Target, target: str) -> None:
    """Write an audit as a page.

    Raises:
        InputError: when it cannot be written, or jinja2 is not installed.
    """
    from ..audit.page import audit_page

    try:
        path.write_text(audit_page(result, opened.model, title=target), encoding="utf-8")
    except ModuleNotFoundError as error:
        raise InputError(f"--html needs {error.name}: pip install 'transformer-dropout[compare]'.") from None
    except OSError as error:
        raise InputError(f"The page {path} could not be written: {error.strerror}.") from None


def show(console: Console, target: str, result: "Audit") -> None:
    """Print an audit as tables."""
    _, rows = result.table()
    if rows:
        print_table(console, f"{target}: what ran", COLUMNS, [cells_of(row) for row in rows], fixed=2)
    else:
        console.print(f"{escape(target)}: no random or mask operation ran, in training or in evaluation.")
    from ..audit._events import field_cells

    if result.fields:
        fields = [(field.name, *field_cells(field)) for field in result.fields]
        print_table(console, "Fields of the config", ("field", "value", "read at"), fields)
    for note in result.notes:
        console.print(f"note: {escape(note)}", soft_wrap=True, highlight=False)
    for finding in result.findings:
        place = escape(f"{finding.site or 'the model'}: {finding.message}")
        console.print(f"[yellow]{finding.code}[/yellow] at {place}", soft_wrap=True, highlight=False)
    if not result.findings:
        console.print("No findings.")


def cells_of(row: Sequence[str]) -> tuple[str, ...]:
    """Return a row of an audit's table in the width of a terminal."""
    site, kind, operation, configured, resolved, measured, training, evaluation = row
    # Long names of operations would squeeze the paths.
    short = operation.replace("scaled_dot_product_attention", "sdpa").removeprefix("transformer_dropout.")
    return site, kind, short, configured, resolved, measured, f"{training} / {evaluation}"
