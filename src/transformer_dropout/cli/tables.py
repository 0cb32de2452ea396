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
    # Not `is_terminal`, which is also true of a pipe that is to have colours.
    return console if console.file.isatty() else Console(width=UNBROKEN)


def print_table(
    console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], fixed: int = 0
) -> None:
    """Print a table with few lines, in a pipe with none and each row on one line.

    Args:
        console: where.
        title: over the table, on a line of its own, which may be longer than the table is wide.
        columns: their names.
        rows: the cells.
        fixed: how many columns after the first are not folded.
    """
    folds = console.file.isatty()
    table = Table(box=SIMPLE_HEAD if folds else None, padding=(0, 1 if folds else 2, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=1 <= index <= fixed)
    for row in rows:
        cells = row if folds else [cell.replace("\n", ", ") for cell in row]
        table.add_row(*(escape(cell) for cell in cells))
    console.print(f"[italic]{escape(title)}[/italic]", soft_wrap=True, highlight=False)
    console.print(table)
