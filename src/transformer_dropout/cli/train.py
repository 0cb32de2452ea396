"""``dropout train``: one run."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ..errors import InputError
from .options import DataOption, SetOption, StepsOption, dotted_changes, usable_folder
from .progress import note, rich_table, run_bars, stop_bars

if TYPE_CHECKING:
    from ..runs.run_config import RunConfig


def train(
    config: Annotated[Path, typer.Argument(help="A run config: a YAML file.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", callback=usable_folder, help="The run folder."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue what the run folder holds.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print parameters, tokens, FLOPs and memory; train nothing.")
    ] = False,
    seed: Annotated[int | None, typer.Option("--seed", help="Of weights, data order and masks.")] = None,
    data: DataOption = None,
    steps: StepsOption = None,
    changes: SetOption = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, max=1024, help="CPU threads.")] = None,
    processes: Annotated[
        int, typer.Option("--processes", min=1, max=1024, help="Processes of this machine, for one run.")
    ] = 1,
) -> None:
    """Train one run config.

    Examples:

    - `dropout train configs/published/with_penalty.yaml --dry-run`
    - `dropout train my.yaml --out runs/my --set training.lr=3e-4`
    - `dropout train my.yaml --out runs/my --set training.lr=3e-4 --resume`
    - `dropout train my.yaml --out runs/my --processes 2`
    - `torchrun --nproc_per_node 2 -m transformer_dropout train my.yaml --out runs/my`
    """
    from ..kernels.freed_memory import keep_freed_memory
    from ..runs.launch import launch, launched
    from ..runs.run import choose_threads
    from ..runs.run_config import load_run_config

    choose_threads(threads)
    keep_freed_memory()
    run_config = load_run_config(config, dotted_changes(changes, data=data, steps=steps))
    if seed is not None:
        run_config = replace(run_config, seed=seed)
    console = Console(quiet=os.environ.get("RANK", "0") != "0")
    if dry_run:
        print_cost(console, run_config)
        return
    if processes > 1 and not launched():
        # Each of them reads the same command line.
        launch(processes, "transformer_dropout", sys.argv[1:])
        return
    train_with_bar(
        console, run_config, out or Path("runs") / run_config.slug() / f"seed-{run_config.seed}", resume
    )


def print_cost(console: Console, config: "RunConfig") -> None:
    """Print what a run would cost."""
    from ..runs.cost import count_cost, sketch_of_splits
    from ..runs.run import prepare

    item = config.find_task().item
    try:
        splits = prepare(config)
        training = config.training
        passes = f"{training.steps * training.batch * training.accumulation / len(splits.train):,.1f}"
    except InputError as error:
        found = sketch_of_splits(config)
        if found is None:
            raise
        splits, passes = found, f"unknown: {error}"
    cost = count_cost(config, splits)
    rows = [
        ["parameters", f"{cost.parameters:,}"],
        ["parameters without the positional embedding", f"{cost.without_positional:,}"],
        ["parameters that are trained", f"{cost.trained:,}"],
        ["parameters of the recipe's layers", f"{cost.regularizer:,}"],
        ["those of them that never receive a gradient", f"{cost.frozen:,}"],
        [f"training {item}s", f"{cost.items:,}"],
        ["passes over the training data", passes],
        [f"training FLOPs per {item}", f"{cost.training_flops_per_item:,.0f}"],
        ["training FLOPs", f"{cost.training_flops_per_item * cost.items:.3g}"],
        ["share of the FLOPs in the gate", f"{cost.gate_share:.1%}"],
        ["estimated memory", f"{cost.memory_bytes / 2**20:,.0f} MiB"],
    ]
    if "vocabulary_size" in splits.manifest:
        rows.insert(5, ["vocabulary", f"{splits.manifest['vocabulary_size']:,}"])
    console.print(rich_table(config.name, ["", "value"], rows))


def train_with_bar(console: Console, config: "RunConfig", folder: Path, resume: bool) -> None:
    """Train with one progress bar, then print the result."""
    from ..runs.listener import Listener, RunProgress
    from ..runs.processes import leave
    from ..runs.run import Interrupted, run
    from ..runs.run_config import DEFAULT_TASK

    bars = run_bars(console)
    bar = bars.add_task(f"{config.name}, seed {config.seed}", total=config.training.steps, note="")

    def show(progress: RunProgress) -> None:
        # Not before the run has begun: a refused one shows no bar.
        if console.is_terminal:
            bars.start()
        bars.update(bar, completed=progress.step, note=note(progress.loss, progress.val_loss, progress.keep))

    def tell(message: str) -> None:
        console.print(message, markup=False, highlight=False, soft_wrap=True)

    try:
        record = run(config, folder, resume=resume, listener=Listener(progress=show, message=tell))
    except Interrupted as interrupted:
        stop_bars(bars)
        tell(f"Saved at step {interrupted.step}; continue with the same command and --resume --out {folder}")
        leave(128 + interrupted.signal)
    finally:
        stop_bars(bars)
    result = record["result"]
    for alarm in record["alarms"]:
        console.print(f"[yellow]alarm:[/yellow] {escape(alarm)}", soft_wrap=True, highlight=False)
    for sentence in record["notes"]:
        tell(f"note: {sentence}")
    keep = (
        "" if result["keep"] is None else f", keep {result['keep']:.1%}" + as_evaluated(result["keep_eval"])
    )
    metrics = record["task"]["metrics"]
    tell(", ".join(scores(result, metric["name"]) for metric in metrics) + keep)
    tell(f"Run folder: {folder}")
    if config.task == DEFAULT_TASK:
        tell(f"Try: dropout generate {folder} --prompt 'Return the' --tokens 200")
    leave(0)


def scores(result: dict, name: str) -> str:
    """Return one metric on each split, as text."""
    uses = [use for use in ("train", "val", "test") if result.get(f"{use}_{name}") is not None]
    return ", ".join(f"{use} {name} {result[f'{use}_{name}']:.4f}" for use in uses)


def as_evaluated(keep: float | None) -> str:
    """Return the kept fraction in evaluation, where a layer masks anything there."""
    return "" if keep is None else f" (as evaluated {keep:.1%})"
