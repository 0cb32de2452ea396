"""The command ``dropout``."""

import sys

import typer
from rich.console import Console
from rich.markup import escape

from ..errors import InputError
from . import audit, compare, generate, report, sites, train

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="See, control, learn and prove dropout and its rivals on transformers.",
)
for module in (audit, sites, compare, train, generate, report):
    name = module.__name__.rsplit(".", 1)[1]
    app.command(name)(getattr(module, name))


def main(command: typer.Typer = app) -> None:
    """Run a command line; what a user can put right is one sentence and exit code 2."""
    try:
        command()
    except InputError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"[red]error:[/red] {escape(str(error))}")
        sys.exit(2)
