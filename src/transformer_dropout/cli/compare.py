"""``dropout compare``: arms x seeds, compared fairly."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ..errors import InputError
from .options import DataOption, LoraOption, ModelOption, SetOption, StepsOption, TaskOption, dotted_changes
from .progress import note, run_bars, stop_bars

if TYPE_CHECKING:
    from ..compare.cells import Cell, Outcome
    from ..runs.run_config import RunConfig


OnOption = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="ENGINE",
        help="local:N, dask:ADDRESS, slurm:PARTITION or ray; default: this machine, a run a core.",
    ),
]
GpusOption = Annotated[
    int | None,
    typer.Option("--gpus", min=0, metavar="N", help="GPUs of a run; default: 1 where there is any."),
]


def compare(
    configs: Annotated[
        list[Path] | None, typer.Argument(help="Run configs, one an arm; none for the six default arms.")
    ] = None,
    task: TaskOption = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each arm.")] = 3,
    model: ModelOption = None,
    lora: LoraOption = None,
    data: DataOption = None,
    steps: StepsOption = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The comparison's folder.")] = Path(
        "runs/compare"
    ),
    changes: SetOption = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Runs at once, one thread each; default: the cores.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="ARM", help="Compare with this arm, not the best plain dropout."),
    ] = None,
    on: OnOption = None,
    gpus: GpusOption = None,
) -> None:
    """Train every arm with every seed, then say which regularizer won, with intervals.

    The same command again does only what is missing.

    Examples:

    - `dropout compare`
    - `dropout compare --task images`
    - `dropout compare --task causal_lm --model my_gpt2/ --data my_texts/ --lora 8`
    - `dropout compare --task my_task.py --set training.steps=500`
    - `dropout compare --data my_texts/ --set data.tokenizer=bpe:4096 --out runs/mine`
    - `dropout compare a.yaml b.yaml --seeds 5 --steps 4000 --jobs 4 --out runs/a-b`
    - `dropout compare --on dask:tcp://head:8786`
    - `dropout compare --on slurm:gpu,timeout_min=600,mem_gb=16 --jobs 20`
    """
    from ..compare.cells import make_cells
    from ..compare.comparison import check_arms, opened_comparison, prepare_data, run_cells
    from ..compare.engines import Resources, choose_engine

    console = Console()
    arms = load_arms(
        configs or [], task, dotted_changes(changes, data=data, steps=steps, model=model, lora=lora)
    )
    check_arms(arms)
    if reference is not None and reference not in [arm.name for arm in arms]:
        raise InputError(
            f"--reference {reference!r} is no arm; the arms are: {', '.join(a.name for a in arms)}."
        )
    about = {"command": shlex.join(["dropout", *sys.argv[1:]]), "reference": reference}
    cells = make_cells(arms, list(range(seeds)), out)
    prepare_data(cells)
    engine = choose_engine(on, out, Resources(jobs=jobs, gpus=gpus))
    with opened_comparison(out, arms, list(range(seeds)), about), Display(console, cells) as display:
        outcomes = run_cells(cells, engine, on_event=display.event, on_outcome=display.outcome)
    finish(console, out, outcomes)


def load_arms(configs: list[Path], task: str | None, changes: dict[str, str]) -> "list[RunConfig]":
    """Return the arms of the command line, or the default ones of a task, with the changes applied to all.

    Raises:
        InputError: when there are configs and a task, or neither configs nor default arms.
    """
    from ..runs.default_arms import default_arms
    from ..runs.run_config import DEFAULT_TASK, load_run_config

    if configs and task is not None:
        raise InputError("--task stands for a task's own arms; leave it out, or the run configs.")
    if configs:
        return [load_run_config(path, changes) for path in configs]
    return default_arms(task or DEFAULT_TASK, changes)


def finish(console: Console, out: Path, outcomes: "list[Outcome]") -> None:
    """Report what ended, and exit with 1 when a run failed, 130 when stopped."""
    from .report import show_report

    stopped = [outcome for outcome in outcomes if outcome.status == "stopped"]
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    if stopped:
        console.print(f"Stopped with {len(stopped)} runs to do; the same command continues them.")
        sys.exit(130)
    if len(failed) < len(outcomes):
        show_report(console, out)
    for outcome in failed:
        text = escape(f"{outcome.cell.name}: {outcome.reason}")
        console.print(f"[red]failed:[/red] {text}", soft_wrap=True, highlight=False)
    if failed:
        console.print("The same command tries the failed runs again.")
        sys.exit(1)


class Display:
    """One bar a run on a terminal; one line a finished run elsewhere."""

    def __init__(self, console: Console, cells: "list[Cell]") -> None:
        self.console, self.bars = console, run_bars(console)
        self.total = self.bars.add_task("all runs", total=len(cells), note="")
        self.tasks = {
            cell.folder: self.bars.add_task(cell.name, total=None, note="", start=False) for cell in cells
        }

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        stop_bars(self.bars)

    def event(self, cell: "Cell", event: dict) -> None:
        """Show what a run tells."""
        if "message" in event:
            text = f"{cell.name}: {event['message']}"
            self.console.print(text, soft_wrap=True, highlight=False, markup=False)
            return
        task = self.tasks[cell.folder]
        self.bars.start_task(task)
        text = note(event.get("loss"), event.get("val_loss"), event.get("keep"))
        self.bars.update(task, total=event.get("steps"), completed=event["step"], note=text)

    def outcome(self, outcome: "Outcome") -> None:
        """Count a run that ended."""
        self.bars.advance(self.total)
        if not self.console.is_terminal:
            self.console.print(f"{outcome.cell.name}: {outcome.status}", highlight=False, markup=False)
