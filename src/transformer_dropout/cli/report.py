"""``dropout report``: the report again, from the records."""

import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .tables import table_console

# From so many characters on a table is shown whole; below, without the columns that begin so.
WIDE = 120
ON_WIDE_TERMINALS = ("seeds", "train", "best", "more seeds", "keep")


def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a comparison, or of one run.")],
    open_page: Annotated[bool, typer.Option("--open", help="Show the page in a browser.")] = False,
) -> None:
    """Rebuild the report of a comparison, or of one run, from its records.

    Examples:

    - `dropout report runs/compare`
    - `dropout report runs/compare/runs/dropout-p-0.1/seed-0 --open`
    """
    console = table_console()
    path = show_run(console, folder) if is_run(folder) else show_report(console, folder)
    if open_page:
        open_in_browser(console, path)


def is_run(folder: Path) -> bool:
    """Return whether a folder is of one run and not of a comparison."""
    return (folder / "run.json").is_file() and not (folder / "comparison.json").exists()


def show_report(console: Console, folder: Path) -> Path:
    """Print tables and verdicts of a comparison, write the report, and return its page."""
    from ..compare.facts import cautions, progress
    from ..compare.headline import headline, regime
    from ..compare.records import load_comparison
    from ..compare.report import write_report
    from ..compare.table import metrics_table, result_table
    from ..compare.verdicts import judge
    from .progress import rich_table

    path = write_report(folder)
    comparison = load_comparison(folder)
    judgement = judge(comparison)
    for table in (result_table(comparison, judgement), metrics_table(comparison, judgement)):
        if table is not None:
            kept = shown_columns(table.columns, console.width)
            rows = [[row[at] for at in kept] for row in table.rows]
            console.print(rich_table("", [table.columns[at] for at in kept], rows))
    told = [f"{verdict.arm}: {verdict.text}" for verdict in judgement.verdicts.values()]
    told += ["", headline(comparison, judgement), regime(comparison).text, *cautions(comparison)]
    told += [] if comparison.finished == comparison.cells else [progress(comparison)]
    for line in told:
        console.print(line, highlight=False, markup=False)
    console.print(f"Report: {path.resolve()}", soft_wrap=True, markup=False)
    return path


def shown_columns(columns: Sequence[str], width: int) -> list[int]:
    """Return which columns of a comparison's table a terminal of so many characters shows.

    The verdicts follow in full, so their column is left out; the page has all of them.
    """
    hidden = ("verdict",) if width >= WIDE else ("verdict", *ON_WIDE_TERMINALS)
    return [at for at, column in enumerate(columns) if not column.startswith(hidden)]


def show_run(console: Console, folder: Path) -> Path:
    """Print the numbers of one run, write its report, and return its page."""
    from ..compare.records import load_run
    from ..compare.run_report import run_sentence, run_table, write_run_report
    from .progress import rich_table

    path = write_run_report(folder)
    run = load_run(folder)
    table = run_table(run)
    console.print(rich_table("", table.columns, table.rows))
    console.print(f"{run.name}, seed {run.seed}: {run_sentence(run)}", highlight=False, markup=False)
    console.print(f"Report: {path.resolve()}", soft_wrap=True, markup=False)
    return path


def open_in_browser(console: Console, page: Path) -> None:
    """Show a page in the user's browser, or say where it lies when there is none."""
    if not webbrowser.open(page.resolve().as_uri()):
        console.print(f"No browser was found; open {page.resolve()}", soft_wrap=True, markup=False)
