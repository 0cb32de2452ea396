"""Progress bars: one per run, with the loss and the fraction that the masks keep."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table


def run_bars(console: Console) -> Progress:
    """Return bars with step, loss, validation loss, keep fraction and time left."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def stop_bars(bars: Progress) -> None:
    """Stop bars that were started; the others would leave an empty line."""
    if bars.live.is_started:
        bars.stop()


def note(loss: float | None, val_loss: float | None, keep: float | None) -> str:
    """Return the numbers beside a bar."""
    parts = [] if loss is None else [f"loss {loss:.3f}"]
    if val_loss is not None:
        parts.append(f"val {val_loss:.3f}")
    if keep is not None:
        parts.append(f"keep {keep:.0%}")
    return "  ".join(parts)


def rich_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table for the terminal; the first column is text, the others are numbers."""
    table = Table(title=escape(title), title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table
