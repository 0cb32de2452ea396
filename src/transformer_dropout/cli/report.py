"""``dropout report``: the report again, from the records."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def report(folder: Annotated[Path, typer.Argument(help="A comparison's folder.")]) -> None:
    """Rebuild table and report of a comparison from its records.

    Example:

    - `dropout report runs/compare`
    """
    show_report(Console(), folder)


def show_report(console: Console, folder: Path) -> None:
    """Print table and verdicts, and write the report."""
    from ..compare.records import load_comparison
    from ..compare.report import write_report
    from ..compare.table import result_table
    from ..compare.verdicts import judge
    from .progress import rich_table

    path = write_report(folder)
    comparison = load_comparison(folder)
    judgement = judge(comparison)
    table = result_table(comparison, judgement)
    # The verdicts follow in full, so their column is left out.
    console.print(rich_table("", table.columns[:-1], [row[:-1] for row in table.rows]))
    for verdict in judgement.verdicts.values():
        console.print(f"{verdict.arm}: {verdict.text}", highlight=False, markup=False)
    console.print(f"\n{judgement.headline}\n{judgement.regime.text}", highlight=False, markup=False)
    console.print(f"Report: {path.resolve()}", soft_wrap=True, markup=False)
