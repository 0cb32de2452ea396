"""``dropout train``: one run."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from .options import DataOption, SetOption, StepsOption, dotted_changes
from .progress import note, rich_table, run_bars, stop_bars

if TYPE_CHECKING:
    from ..runs.run_config import RunConfig


def train(
    config: Annotated[Path, typer.Argument(help="A run config: a YAML file.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run folder.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue what the run folder holds.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print parameters, tokens, FLOPs and memory; train nothing.")
    ] = False,
    seed: Annotated[int | None, typer.Option("--seed", help="Of weights, data order and masks.")] = None,
    data: DataOption = None,
    steps: StepsOption = None,
    changes: SetOption = None,
    threads: Annotated[int | None, typer.Option("--threads", help="CPU threads.")] = None,
) -> None:
    """Train one run config.

    Examples:

    - `dropout train configs/published/with_penalty.yaml --dry-run`
    - `dropout train my.yaml --out runs/my --set training.lr=3e-4`
    - `dropout train my.yaml --out runs/my --set training.lr=3e-4 --resume`
    - `torchrun --nproc_per_node 2 -m transformer_dropout train my.yaml --out runs/my`
    """
    from ..kernels.freed_memory import keep_freed_memory
    from ..runs.run import choose_threads
    from ..runs.run_config import load_run_config

    choose_threads(threads)
    keep_freed_memory()
    run_config = load_run_config(config, dotted_changes(changes, data, steps))
    if seed is not None:
        run_config = replace(run_config, seed=seed)
    console = Console(quiet=os.environ.get("RANK", "0") != "0")
    if dry_run:
        print_cost(console, run_config)
        return
    train_with_bar(
        console, run_config, out or Path("runs") / run_config.slug() / f"seed-{run_config.seed}", resume
    )


def print_cost(console: Console, config: "RunConfig") -> None:
    """Print what a run would cost."""
    from ..runs.cost import count_cost
    from ..tasks.language.data import Windows, prepare, vocabulary_size

    known = vocabulary_size(config.data.tokenizer)
    passes = "unknown: the tokenizer's files are missing"
    if known is None or not config.data.tokenizer.startswith("gpt2"):
        prepared = prepare(config.data)
        known = prepared.tokenizer.vocabulary_size
        windows = len(Windows(prepared.train, config.model.context))
        training = config.training
        passes = f"{training.steps * training.batch * training.accumulation / windows:,.1f}"
    cost = count_cost(config, known)
    rows = [
        ["parameters", f"{cost.parameters:,}"],
        ["parameters without the positional embedding", f"{cost.without_positional:,}"],
        ["parameters of the recipe's layers", f"{cost.regularizer:,}"],
        ["parameters that never receive a gradient", f"{cost.frozen:,}"],
        ["vocabulary", f"{known:,}"],
        ["training tokens", f"{cost.tokens:,}"],
        ["passes over the training data", passes],
        ["training FLOPs per token", f"{cost.training_flops_per_token:,.0f}"],
        ["training FLOPs", f"{cost.training_flops_per_token * cost.tokens:.3g}"],
        ["share of the FLOPs in the gate", f"{cost.gate_share:.1%}"],
        ["estimated memory", f"{cost.memory_bytes / 2**20:,.0f} MiB"],
    ]
    console.print(rich_table(config.name, ["", "value"], rows))


def train_with_bar(console: Console, config: "RunConfig", folder: Path, resume: bool) -> None:
    """Train with one progress bar, then print the result."""
    from ..runs.listener import Listener, Progress
    from ..runs.processes import leave
    from ..runs.run import Interrupted, run

    bars = run_bars(console)
    bar = bars.add_task(f"{config.name}, seed {config.seed}", total=config.training.steps, note="")

    def show(progress: Progress) -> None:
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
        ""
        if result["keep"] is None
        else f", keep {result['keep']:.1%} (as evaluated {result['keep_eval']:.1%})"
    )
    tell(f"train loss {result['train_loss']:.4f}, val loss {result['val_loss']:.4f}{keep}")
    tell(f"Run folder: {folder}\nTry: dropout generate {folder} --prompt 'Return the' --tokens 200")
    leave(0)
