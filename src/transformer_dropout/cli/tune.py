"""``dropout tune``: which settings, searched for every method under one budget."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .compare import (
    ArmsOption,
    ConfigsArgument,
    GpusOption,
    JobsOption,
    MetricOption,
    OnOption,
    RunOption,
    chosen_arms,
)
from .options import DataOption, LoraOption, ModelOption, SetOption, StepsOption, TaskOption, usable_folder
from .progress import rich_table

if TYPE_CHECKING:
    from ..compare.tuning.space import Method
    from ..compare.tuning.study import Budget

SpaceOption = Annotated[
    Path | None,
    typer.Option("--space", metavar="FILE", help="What is searched: a YAML file, or a sweep of W&B."),
]
MethodOption = Annotated[
    list[str] | None,
    typer.Option("--method", metavar="ARM", help="Search this arm only; may be repeated."),
]
FolderOption = Annotated[
    Path, typer.Option("--out", metavar="DIR", callback=usable_folder, help="The search's folder.")
]
FoldsOption = Annotated[
    int, typer.Option("--folds", min=1, max=1000, help="Parts of a cross-validation, each a run of its own.")
]


def tune(
    configs: ConfigsArgument = None,
    task: TaskOption = None,
    space: SpaceOption = None,
    trials: Annotated[
        int, typer.Option("--trials", min=2, max=100_000, help="Settings tried for each method.")
    ] = 40,
    folds: FoldsOption = 1,
    methods: MethodOption = None,
    prune: Annotated[
        bool, typer.Option("--prune/--no-prune", help="End runs that are worse than the median early.")
    ] = True,
    model: ModelOption = None,
    lora: LoraOption = None,
    data: DataOption = None,
    steps: StepsOption = None,
    out: FolderOption = Path("runs/tune"),
    changes: SetOption = None,
    jobs: JobsOption = None,
    on: OnOption = None,
    gpus: GpusOption = None,
    run: RunOption = None,
    arms: ArmsOption = None,
    metric: MetricOption = None,
) -> None:
    """Search settings of every method under the same budget, then say what to compare on fresh seeds.

    Without --space it searches learning rate, weight decay and the rate of each arm. The same command again
    continues, and several processes or machines may run it at once on one folder.

    Examples:

    - `dropout tune --method "dropout p=0.1" --method none --trials 20`
    - `dropout tune --task images --space space.yaml --folds 5`
    - `dropout tune a.yaml b.yaml --space sweep.yaml --out runs/search`
    - `dropout tune finetune.py:train --arms arms.yaml --space space.yaml --trials 30`
    """
    from ..compare.comparison import check_names
    from ..compare.engines import Resources, choose_engine
    from ..compare.tuning.study import Budget, at_once

    options = {"task": task, "data": data, "model": model, "lora": lora}
    compared, _ = chosen_arms(
        configs, changes, steps=steps, options=options, run=run, arms=arms, metric=metric
    )
    check_names(compared)
    searched = only(searched_methods(space, compared), methods)
    engine = choose_engine(on, out, Resources(jobs=jobs, gpus=gpus))
    together = at_once(engine, len(searched), folds)
    budget = Budget(trials=trials, folds=folds, together=together, prune=prune)
    show_search(searched, out, engine, budget)


def show_search(searched: "list[Method]", out: Path, engine: Any, budget: "Budget") -> None:
    """Search with a bar for each method, or a line for each trial, then print what was found."""
    from ..compare.tuning.results import found_by_all, write_chosen
    from ..compare.tuning.study import open_study
    from ..compare.tuning.study import tune as search

    console = Console()
    with bars(console) as progress:
        tasks = {
            method.arm.name: progress.add_task(method.arm.name, total=budget.trials, note="")
            for method in searched
        }

        def told(method: "Method", trial: Any) -> None:
            state = trial.state.name.lower()
            ended = f"{trial.value:.4f}" if state == "complete" else state  # a pruned one has a value too
            progress.update(tasks[method.arm.name], completed=trial.number + 1, note=f"last {ended}")
            reason = trial.user_attrs.get("reason")
            if reason or not console.is_terminal:
                text = f"{method.arm.name}, trial {trial.number + 1} of {budget.trials}: {reason or ended}"
                console.print(text, soft_wrap=True, highlight=False, markup=False)

        try:
            search(searched, out, engine, budget, on_event=lambda cell, event: None, on_trial=told)
        except KeyboardInterrupt:
            console.print("Stopped; the same command continues.")
            sys.exit(130)
    found, without = found_by_all(searched, lambda name: open_study(out, name, budget))
    write_chosen(found, out)
    show(console, found, out, budget)
    for sentence in without:
        console.print(f"[red]failed:[/red] {escape(sentence)}", soft_wrap=True, highlight=False)
    if without:
        sys.exit(1)


def searched_methods(space: Path | None, arms: list[Any]) -> "list[Method]":
    """Return the methods with what is searched for each."""
    from ..compare.tuning.space import default_methods, read_methods

    return default_methods(arms) if space is None else read_methods(space, arms)


def only(methods: "list[Method]", names: list[str] | None) -> "list[Method]":
    """Return the methods that are named; all without names.

    Raises:
        InputError: for a name that there is not.
    """
    from ..errors import InputError, did_you_mean

    known = {method.arm.name: method for method in methods}
    for name in names or ():
        if name not in known:
            raise InputError(f"--method {name!r} is no arm.{did_you_mean(name, known)}")
    return [known[name] for name in names] if names else methods


def bars(console: Console) -> Progress:
    """Return a bar for each method."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def show(console: Console, found: list[Any], out: Path, budget: "Budget") -> None:
    """Print what was found, write the page, and say what to type next."""
    from ..compare.tuning.page import budget_table, explanation, tuning_table, write_page
    from ..compare.tuning.value import metric_name

    chosen = sorted((out / "chosen").glob("*.yaml"))
    next_step = shlex.join(["dropout", "compare", *map(str, chosen), "--seeds", "5", "--out", f"{out}/fresh"])
    if not chosen:
        next_step = "dropout compare your training with the settings above, with --seeds 5"
    about = {
        "command": shlex.join(["dropout", *sys.argv[1:]]),
        "metric": metric_name(out),
        "trials": budget.trials,
        "folds": budget.folds,
        "quasi_random": budget.quasi_random,
    }
    for table in (tuning_table(found), budget_table(found)):
        console.print(rich_table("", table.columns, table.rows))
    console.print(explanation(about), highlight=False, markup=False)
    page = write_page(found, out, about, next_step)
    console.print(f"Page: {page.resolve()}\nOn fresh seeds: {next_step}", soft_wrap=True, markup=False)
