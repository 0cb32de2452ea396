"""``dropout generate``: text from a trained run."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from .options import model_folder

if TYPE_CHECKING:
    from ..surgery.regularize import Regularization
    from ..tasks.language.data import Tokenizer
    from ..tasks.language.decoder import Decoder


def generate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="What the text begins with; several are continued together."),
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", min=0, max=1_000_000, help="How many tokens to add.")
    ] = 200,
    temperature: Annotated[float, typer.Option("--temperature", help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[
        int | None, typer.Option("--top-k", help="Draw from so many of the likeliest tokens only.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option("--top-p", help="Draw from the likeliest tokens only, of this probability together."),
    ] = None,
    sample_masks: Annotated[
        bool, typer.Option("--sample-masks", help="Draw the learned masks instead of thresholding them.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**64 - 1, help="Of the drawing.")] = 0,
    no_cache: Annotated[
        bool,
        typer.Option(
            "--no-cache",
            help="Read all tokens anew for each one: slower, and but for drawn masks the same text.",
        ),
    ] = False,
) -> None:
    """Continue one prompt as it comes, or several together.

    Examples:

    - `dropout generate runs/my --prompt "Return the" --tokens 200`
    - `dropout generate runs/my --prompt "Raise" --temperature 0`
    - `dropout generate runs/my --prompt "Raise" --prompt "Return a" --top-p 0.9`
    - `dropout generate runs/my --prompt "Raise" --top-k 40 --seed 3`
    - `dropout generate runs/my --prompt "Raise" --sample-masks`
    """
    import torch

    from ..tasks.language.generate import generate as generate_tokens
    from ..tasks.language.generate import sample_masks as let_masks_be_sampled

    model, regularization, tokenizer = opened_run(run)
    if sample_masks:
        let_masks_be_sampled(regularization)
    torch.manual_seed(seed)
    rows = [[int(token) for token in tokenizer.encode(text)] for text in prompt or ["Return "]]
    steps = generate_tokens(
        model, rows, tokens, temperature=temperature, top_k=top_k, top_p=top_p, cache=not no_cache
    )
    show(rows, steps, tokenizer.decode)


def opened_run(run: Path) -> "tuple[Decoder, Regularization, Tokenizer]":
    """Return the model of a run, its regularization and its tokenizer.

    Raises:
        InputError: when one is missing or damaged, or they do not belong together.
    """
    from ..tasks.language.data import load_tokenizer
    from ..tasks.language.saved_model import load_model

    folder = model_folder(run)
    model, regularization = load_model(folder)
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocabulary_size != model.vocabulary_size:
        raise InputError(
            f"The tokenizer in {folder} has {tokenizer.vocabulary_size:,} entries and the model "
            f"{model.vocabulary_size:,}; they do not belong together."
        )
    return model, regularization, tokenizer


def show(rows: list[list[int]], steps: Iterable[list[int]], decode: Callable[[list[int]], str]) -> None:
    """Write one text as it comes, or several when they are done.

    Args:
        rows: the token ids of each prompt.
        steps: the next token of each row, step after step.
        decode: turns token ids into text.
    """
    shown = ""
    for step in steps:
        for row, token in zip(rows, step, strict=True):
            row.append(token)
        if len(rows) == 1:
            shown = show_more(decode(rows[0]), shown)
    last = decode(rows[0])
    first = last[len(shown) :] if last.startswith(shown) else ""
    sys.stdout.write("\n\n".join([first, *map(decode, rows[1:])]) + "\n")


def show_more(text: str, shown: str) -> str:
    """Write what a text has more than was shown of it; return what is shown now.

    A character may take several tokens; until the last it decodes to a replacement character.
    """
    if text.endswith("\ufffd") or not text.startswith(shown):
        return shown
    sys.stdout.write(text[len(shown) :])
    sys.stdout.flush()
    return text
