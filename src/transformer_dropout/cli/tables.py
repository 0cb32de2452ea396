"""Tables for a terminal, and for a pipe."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

# Wider than any row: what is not looked at in a terminal is read by other programs, line by line.
UNBROKEN = 10_000


def table_console() -> Console:
    """Return a console that folds tables to the width of a terminal, and nothing where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=UNBROKEN)


def narrow_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], fixed: int = 0) -> Table:
    """Return a table with few lines; after the first column, ``fixed`` ones are not folded."""
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=1 <= index <= fixed)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table
