"""``dropout compare``: arms x seeds, compared fairly."""

import re
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from ..errors import InputError
from .options import (
    DataOption,
    LoraOption,
    ModelOption,
    SetOption,
    StepsOption,
    TaskOption,
    dotted_changes,
    usable_folder,
)
from .progress import note, run_bars, stop_bars
from .tables import table_console

if TYPE_CHECKING:
    from ..compare.cells import Cell, Outcome
    from ..compare.report import LiveReport
    from ..runs.run_config import RunConfig


OnOption = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="ENGINE",
        help="local:N, dask:ADDRESS, slurm:PARTITION or ray; default: this machine, one run per core.",
    ),
]
GpusOption = Annotated[
    int | None,
    typer.Option(
        "--gpus", min=0, max=1024, metavar="N", help="GPUs of a run; default: 1 where there is any."
    ),
]


ConfigsArgument = Annotated[
    list[Path] | None,
    typer.Argument(help="Run configs, one per arm, or FILE.py:FUNCTION; none for the task's own arms."),
]
SeedsOption = Annotated[int, typer.Option("--seeds", min=1, max=10_000, help="Runs of each arm.")]
OutOption = Annotated[
    Path, typer.Option("--out", metavar="DIR", callback=usable_folder, help="The comparison's folder.")
]
JobsOption = Annotated[
    int | None,
    typer.Option("--jobs", min=1, max=10_000, help="Runs at once, one thread each; default: the cores."),
]
ReferenceOption = Annotated[
    str | None,
    typer.Option("--reference", metavar="ARM", help="Compare with this arm, not the best plain dropout."),
]
RunOption = Annotated[
    str | None,
    typer.Option(
        "--run", metavar="COMMAND", help="A command with {seed}, {recipe} and {out}: your training."
    ),
]
ArmsOption = Annotated[
    Path | None,
    typer.Option("--arms", metavar="FILE", help="A list of {name, recipe, settings} for your own training."),
]
MetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric", metavar="NAME[:higher]", help="What your own training is judged by, e.g. val_f1."
    ),
]
OpenOption = Annotated[
    bool, typer.Option("--open", help="Show the report in a browser; it follows the runs until all are done.")
]


def compare(
    configs: ConfigsArgument = None,
    task: TaskOption = None,
    seeds: SeedsOption = 3,
    model: ModelOption = None,
    lora: LoraOption = None,
    data: DataOption = None,
    steps: StepsOption = None,
    out: OutOption = Path("runs/compare"),
    changes: SetOption = None,
    jobs: JobsOption = None,
    reference: ReferenceOption = None,
    on: OnOption = None,
    gpus: GpusOption = None,
    run: RunOption = None,
    arms: ArmsOption = None,
    metric: MetricOption = None,
    open_page: OpenOption = False,
) -> None:
    """Train every arm with every seed, then say which regularizer won, with intervals.

    The same command again does only what is missing.

    Examples:

    - `dropout compare`
    - `dropout compare --task images`
    - `dropout compare --task causal_lm --model my_gpt2/ --data my_texts/ --lora 8`
    - `dropout compare --data my_texts/ --set data.tokenizer=bpe:4096 --out runs/mine`
    - `dropout compare a.yaml b.yaml --seeds 5 --steps 4000 --jobs 4 --out runs/a-b`
    - `dropout compare finetune.py:train --arms arms.yaml --seeds 5`
    - `dropout compare --run 'python train.py --seed {seed} --recipe {recipe} --out {out}' --arms arms.yaml`
    - `dropout compare --on dask:tcp://head:8786`
    - `dropout compare --on slurm:gpu,timeout_min=600,mem_gb=16 --jobs 20`
    """
    options = {"task": task, "data": data, "model": model, "lora": lora}
    compared, module = chosen_arms(
        configs, changes, steps=steps, options=options, run=run, arms=arms, metric=metric
    )
    about = {"command": shlex.join(["dropout", *sys.argv[1:]]), "reference": reference}
    train(compared, list(range(seeds)), out, module, about, on=on, jobs=jobs, gpus=gpus, open_page=open_page)


def chosen_arms(
    configs: list[Path] | None,
    changes: list[str] | None,
    *,
    steps: int | None,
    options: dict[str, Any],
    run: str | None,
    arms: Path | None,
    metric: str | None,
) -> tuple[list[Any], str]:
    """Return the arms that a command line names, and the module that runs them.

    Args:
        configs: run configs, or the place of a function.
        changes: what stood behind each ``--set``.
        steps: how long to train.
        options: those that say what a task trains, by name.
        run, arms, metric: those of a training of the user's own.
    """
    from ..compare.cells import TRAINING
    from ..compare.trials import TRIALS

    if run is not None or arms is not None or metric is not None or names_function(configs or []):
        refuse_task_options(options)
        return load_trials(configs or [], run, arms, changes, steps=steps, metric=metric), TRIALS
    task = options.pop("task")
    return load_arms(configs or [], task, dotted_changes(changes, steps=steps, **options)), TRAINING


def train(
    arms: list[Any],
    seeds: list[int],
    out: Path,
    module: str,
    about: dict,
    *,
    on: str | None,
    jobs: int | None,
    gpus: int | None,
    open_page: bool = False,
) -> None:
    """Train every arm with every seed, show how it goes, and report."""
    from ..compare.cells import make_cells
    from ..compare.comparison import check_arms, opened_comparison, prepare_data, run_cells
    from ..compare.engines import Resources, choose_engine
    from ..compare.trials import TRIALS, check_pairs

    console, reference = Console(), about["reference"]
    check_arms(arms)
    if reference is not None and reference not in [arm.name for arm in arms]:
        raise InputError(
            f"--reference {reference!r} is no arm; the arms are: {', '.join(a.name for a in arms)}."
        )
    cells = make_cells(arms, seeds, out, module=module)
    prepare_data(cells)
    engine = choose_engine(on, out, Resources(jobs=jobs, gpus=gpus))
    with opened_comparison(out, arms, seeds, about), Display(console, cells) as display:
        display.follow(out, open_page)
        outcomes = run_cells(cells, engine, on_event=display.event, on_outcome=display.outcome)
        if module == TRIALS:
            check_pairs(cells)
    finish(console, out, outcomes)


def names_function(configs: list[Path]) -> bool:
    """Return whether the command line names a function of the user's instead of run configs."""
    return any(re.search(r"\.py:\w+$", str(config)) for config in configs)


def refuse_task_options(options: dict[str, Any]) -> None:
    """Raise InputError for options that say what a task trains, where the user's own training runs."""
    for name, value in options.items():
        if value is not None:
            raise InputError(
                f"--{name} belongs to a task; hand it to your own training by --set NAME=VALUE, which is in "
                "trial.settings, or fills {NAME} in a command."
            )


def load_trials(
    places: list[Path],
    run: str | None,
    arms: Path | None,
    changes: list[str] | None,
    *,
    steps: int | None,
    metric: str | None,
) -> list[Any]:
    """Return the arms of the user's own training.

    Raises:
        InputError: when it is not said what to train, or with which arms.
    """
    from ..compare.trials import trial_configs
    from ..runs.trial_config import load_arms as read_arms
    from ..yaml_file import parse_value

    if (len(places) == 1) == (run is not None) or len(places) > 1:
        raise InputError("Name one training: FILE.py:FUNCTION, or --run 'COMMAND'.")
    if arms is None:
        raise InputError("Your own training needs --arms FILE: a list of {name: ..., recipe: [...]}.")
    settings = {key: parse_value(value) for key, value in dotted_changes(changes).items()}
    function = None if run is not None else str(places[0])
    return trial_configs(
        read_arms(arms), settings=settings, steps=steps, metric=metric, function=function, command=run
    )


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
    from ..compare.report import write_report
    from .report import show_report

    stopped = [outcome for outcome in outcomes if outcome.status == "stopped"]
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    if stopped or len(failed) == len(outcomes):
        with suppress(InputError):
            write_report(out)  # the page must stop reloading itself
    if stopped:
        console.print(f"Stopped with {len(stopped)} runs to do; the same command continues them.")
        sys.exit(130)
    if len(failed) < len(outcomes):
        show_report(table_console(), out)
    for outcome in failed:
        text = escape(f"{outcome.cell.name}: {outcome.reason}")
        console.print(f"[red]failed:[/red] {text}", soft_wrap=True, highlight=False)
    if failed:
        console.print("The same command tries the failed runs again.")
        sys.exit(1)


class Display:
    """One bar per run on a terminal; one line per finished run elsewhere."""

    def __init__(self, console: Console, cells: "list[Cell]") -> None:
        self.console, self.bars = console, run_bars(console)
        self.report: LiveReport | None = None
        self.total = self.bars.add_task("all runs", total=len(cells), note="")
        self.tasks = {
            cell.folder: self.bars.add_task(cell.name, total=None, note="", start=False) for cell in cells
        }

    def follow(self, out: Path, open_page: bool) -> None:
        """Write the report now and as runs end, and show it if asked to."""
        from ..compare.report import LiveReport
        from .report import open_in_browser

        (out / "runs").mkdir(exist_ok=True)
        self.report = LiveReport(out)
        page = self.report.write()
        if open_page:
            open_in_browser(self.console, page)

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
        if self.report is not None:
            # What keeps it from being written is told by the one at the end.
            with suppress(InputError):
                self.report.update()
        if not self.console.is_terminal:
            self.console.print(f"{outcome.cell.name}: {outcome.status}", highlight=False, markup=False)
