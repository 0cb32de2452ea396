"""``python -m benchmarks``: time what the package makes fast against what people use."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress

from transformer_dropout.cli import main
from transformer_dropout.cli.progress import rich_table
from transformer_dropout.cli.tables import table_console
from transformer_dropout.kernels.freed_memory import keep_freed_memory

from .growth import measure_growth, points_to_measure
from .record import new_record
from .results import QUICK, machine_lines, obstacles, results_table
from .row import Budget
from .run import Result, chosen_rows, run_rows
from .table import all_rows
from .write import write_results

RowOption = Annotated[
    list[str] | None,
    typer.Option("--row", metavar="PATTERN", help="Only rows whose name matches; repeatable."),
]
GrowthOption = Annotated[
    bool, typer.Option("--growth/--no-growth", help="Measure cost against width, context and keep as well.")
]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command()
def benchmarks(
    rows: RowOption = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Smaller shapes and fewer turns: less than three minutes.")
    ] = False,
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, help="Turns of each side; 7, or 3 with --quick.")
    ] = None,
    growth: GrowthOption = True,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where record, page and figures go.")
    ] = Path("runs/benchmarks"),
) -> None:
    """Time training steps, masks, decoding and skipped work; every figure is a ratio to a reference.

    Leave the machine alone meanwhile. Ends with exit code 1 when two sides did not compute the same.

    Examples:

    - `python -m benchmarks --quick`
    - `python -m benchmarks --row "decode*" --row "mask*" --no-growth`
    - `python -m benchmarks --out benchmarks`
    """
    chosen = chosen_rows(all_rows(), rows or ())
    budget = Budget(rounds=rounds or (3 if quick else 7), quick=quick)
    torch.set_num_threads(1)
    keep_freed_memory()
    console = table_console()
    with Progress(console=console) as bars:
        bar = bars.add_task("rows", total=len(chosen))

        def tell(result: Result) -> None:
            bars.update(bar, advance=1, description=f"{result.row.name}, {result.row.path}")

        results = run_rows(chosen, budget, tell)
        record = new_record(results, budget, shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]))
        if growth:
            bar = bars.add_task("growth", total=points_to_measure(budget))
            record["growth"] = measure_growth(
                budget, lambda point: bars.update(bar, advance=1, description=point)
            )
    print_results(console, record)
    console.print(f"Page: {write_results(out, record).resolve()}", soft_wrap=True, markup=False)
    if any(result.status == "failed" for result in results):
        raise typer.Exit(1)


def print_results(console: Console, record: dict[str, Any]) -> None:
    """Print the table, the machine, and what is in the way of the targets that are missed."""
    table = results_table(record)
    console.print(rich_table("", table.columns, table.rows))
    for line in (*machine_lines(record), *(f"In the way of {line}" for line in obstacles(record))):
        console.print(line, markup=False, highlight=False)
    if record["quick"]:
        console.print(QUICK)


if __name__ == "__main__":
    main(app)
