"""``dropout show``: a page of what a trained model's masks do to a text."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from .options import model_folder
from .report import open_in_browser
from .tables import table_console

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class ModelAndText:
    """A model that reads a text.

    Attributes:
        model: with its regularization in place.
        inputs: what it is called with.
        tokens: the text as the model reads it, token by token.
        notes: what a reader of the page should know.
    """

    model: "nn.Module"
    inputs: Any
    tokens: list[str]
    notes: list[str]


def show(
    target: Annotated[
        Path, typer.Argument(help="A run folder, or the folder of a Hugging Face model with its tokenizer.")
    ],
    text: Annotated[str, typer.Option("--text", help="The text that the model reads.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The page; masks.html in the folder without.")
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Show the page in a browser.")] = False,
) -> None:
    """Picture what the masks keep of a text: by token, block and channel, and through training.

    The page has a slider through the run's checkpoints; training.keep_checkpoints says how many it keeps.

    Examples:

    - `dropout show runs/my --text "Return the name."`
    - `dropout show runs/my --text "Return the name." --out page.html --open`
    """
    from ..audit._masks import look
    from ..audit.show import Moment, masks_page, moments_of

    if not text:
        raise InputError("The text is empty; give at least one character with --text.")
    reader = reader_of(target, text)
    states, damaged = checkpoints_of(target)
    moments = [
        *moments_of(reader.model, reader.inputs, states),
        Moment(name="the saved model", masks=look(reader.model, reader.inputs)),
    ]
    page = masks_page(moments, reader.tokens, title=target.resolve().name, notes=[*reader.notes, *damaged])
    path = out or target / "masks.html"
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"The page {path} could not be written: {error.strerror}.") from None
    console = table_console()
    for note in (*reader.notes, *damaged):
        console.print(note, soft_wrap=True, markup=False, highlight=False)
    console.print(f"Page: {path.resolve()}", soft_wrap=True, markup=False, highlight=False)
    if open_page:
        open_in_browser(console, path)


def reader_of(target: Path, text: str) -> ModelAndText:
    """Load the model of a folder, and what it makes of a text.

    Raises:
        InputError: when the folder holds no model that reads text, or the run is not finished.
    """
    from ..audit.tiny_models import read_config
    from ..tasks.language.saved_model import MODEL_TYPE

    if not target.is_dir():
        raise InputError(
            f"{target} is no folder; give a run folder, or that of a saved model with its tokenizer. In "
            "Python td.show(model, inputs) pictures any model."
        )
    folder = target if (target / "config.json").is_file() else model_folder(target)
    if not (folder / "config.json").is_file():
        adapter = " It holds LoRA's matrices alone." if (folder / "adapter_config.json").is_file() else ""
        raise InputError(
            f"{folder} holds no model that reads text.{adapter} In Python td.show(model, inputs) pictures "
            "any model."
        )
    if read_config(folder / "config.json")["model_type"] == MODEL_TYPE:
        return read_by_decoder(folder, text)
    return read_by_transformers(folder, text)


def read_by_decoder(folder: Path, text: str) -> ModelAndText:
    """Load a decoder that `dropout train` wrote."""
    import torch

    from ..tasks.language.data import load_tokenizer
    from ..tasks.language.saved_model import load_model

    model, _ = load_model(folder)
    tokenizer = load_tokenizer(folder)
    ids = [int(token) for token in tokenizer.encode(text)]
    ids, notes = shortened(ids, model.config.context)
    return ModelAndText(
        model=model, inputs=(torch.tensor([ids]),), tokens=pieces(ids, tokenizer.decode), notes=notes
    )


def read_by_transformers(folder: Path, text: str) -> ModelAndText:
    """Load a Hugging Face model, with the recipe that lies beside it."""
    from ..audit.tiny_models import saved_model
    from ..tasks._pretrained import load_tokenizer, quiet

    tokenizer = load_tokenizer(folder, padding=False)
    with quiet():
        model = saved_model(folder)
    regularize_as_saved(folder, model)
    config: Any = model.config
    ids, notes = shortened(tokenizer(text)["input_ids"], getattr(config, "max_position_embeddings", None))
    import torch

    inputs = {"input_ids": torch.tensor([ids])}
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = inputs["input_ids"]
        notes.append("The decoder reads the same text as the encoder.")
    return ModelAndText(model=model, inputs=inputs, tokens=pieces(ids, tokenizer.decode), notes=notes)


def regularize_as_saved(folder: Path, model: "nn.Module") -> None:
    """Apply the recipe beside a model, if there is one, with what its layers had learned.

    Raises:
        InputError: when that is not there.
    """
    from safetensors.torch import load_file

    from ..surgery.regularize import regularize_
    from ..surgery.saved_recipe import LEARNED_FILE, RECIPE_FILE, learned_state, load_recipe, load_regularized

    if not (folder / RECIPE_FILE).is_file():
        return
    if (folder / LEARNED_FILE).is_file():
        load_regularized(folder, model).set_progress(1.0)
        return
    handle = regularize_(model, load_recipe(folder))
    wanted = {id(tensor) for tensor in learned_state(handle).values()}
    # A run's model was saved with its layers inside.
    stored: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        stored |= load_file(file)
    model.load_state_dict(stored, strict=False)
    named = model.state_dict(keep_vars=True)
    missing = [name for name, tensor in named.items() if id(tensor) in wanted and name not in stored]
    if missing:
        raise InputError(
            f"{folder} holds a recipe with learned layers but not what they learned ({missing[0]}); save it "
            "with td.save_regularized(folder, handle)."
        )
    handle.set_progress(1.0)


def shortened(ids: list[int], most: int | None) -> tuple[list[int], list[str]]:
    """Return what a model can read of a text, and a sentence where that is not all."""
    if most is None or len(ids) <= most:
        return ids, []
    return ids[:most], [f"Of the text's {len(ids)} tokens the model reads {most}, so the rest is left out."]


def pieces(ids: list[int], decode: Callable[[list[int]], str]) -> list[str]:
    """Return each token as text."""
    return [decode([token]) for token in ids]


def checkpoints_of(target: Path) -> tuple[dict[str, tuple[float, dict[str, "Tensor"]]], list[str]]:
    """Return the models of a run's checkpoints, from the earliest on, and a sentence for each damaged one."""
    from ..runs.checkpoint import DamagedCheckpoint, checkpoint_folders, load_checkpoint
    from ..runs.record import read_run

    record = read_run(target)
    if record is None:
        return {}, []
    states, damaged = {}, []
    for place in reversed(checkpoint_folders(target / "checkpoints")):
        try:
            checkpoint = load_checkpoint(place, record["fingerprint"])
        except DamagedCheckpoint as error:
            damaged.append(f"The checkpoint {place.name} is left out: {error}.")
            continue
        progress = min(1.0, checkpoint.step / record["config"]["training"]["steps"])
        states[f"step {checkpoint.step}"] = (progress, checkpoint.tensors["model"])
    return states, damaged
