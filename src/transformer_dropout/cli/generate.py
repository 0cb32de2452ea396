"""``dropout generate``: text from a trained run."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import model_folder


def generate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    prompt: Annotated[str, typer.Option("--prompt", help="What the text begins with.")] = "Return ",
    tokens: Annotated[int, typer.Option("--tokens", min=0, help="How many tokens to add.")] = 200,
    temperature: Annotated[float, typer.Option("--temperature", help="0 takes the likeliest token.")] = 0.8,
    sample_masks: Annotated[
        bool, typer.Option("--sample-masks", help="Draw the learned masks instead of thresholding them.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the drawing.")] = 0,
) -> None:
    """Continue a prompt.

    Examples:

    - `dropout generate runs/my --prompt "Return the" --tokens 200`
    - `dropout generate runs/my --prompt "Raise" --temperature 0`
    - `dropout generate runs/my --prompt "Raise" --sample-masks`
    """
    import torch

    from ..training.data import load_tokenizer
    from ..training.generate import generate as generate_tokens
    from ..training.generate import sample_masks as let_masks_be_sampled
    from ..training.saved_model import load_model

    folder = model_folder(run)
    model, regularization = load_model(folder)
    tokenizer = load_tokenizer(folder)
    if sample_masks:
        let_masks_be_sampled(regularization)
    torch.manual_seed(seed)
    ids = [int(token) for token in tokenizer.encode(prompt)]
    shown = ""
    for token in generate_tokens(model, ids, tokens, temperature=temperature):
        ids.append(token)
        text = tokenizer.decode(ids)
        # A character may take several tokens; until the last it decodes to a replacement character.
        if not text.endswith("\ufffd") and text.startswith(shown):
            sys.stdout.write(text[len(shown) :])
            sys.stdout.flush()
            shown = text
    text = tokenizer.decode(ids)
    sys.stdout.write((text[len(shown) :] if text.startswith(shown) else "") + "\n")
