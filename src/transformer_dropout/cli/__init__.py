"""The command ``dropout``."""

import sys

import typer
from rich.console import Console

from ..errors import InputError
from . import audit, bench, compare, finetune, generate, report, sites, train

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="See, control, learn and prove dropout and its rivals on transformers.",
)
for module in (audit, sites, compare, finetune, train, generate, bench, report):
    name = module.__name__.rsplit(".", 1)[1]
    app.command(name)(getattr(module, name))


def main() -> None:
    """Run the command line; what a user can put right is one sentence and exit code 2."""
    try:
        app()
    except InputError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"[red]error:[/red] {escape(str(error))}")
        sys.exit(2)


def escape(text: str) -> str:
    """Keep rich from reading brackets as markup."""
    from rich.markup import escape as rich_escape

    return rich_escape(text)
