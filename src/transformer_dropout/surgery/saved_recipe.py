"""A recipe on disk, beside the model it was applied to, and what its layers have learned.

``model.save_pretrained`` also writes what the layers have learned, but ``from_pretrained`` builds the plain
model and drops it, and some families rename keys on the way. So it has a file of its own.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..kernels.sharded import is_sharded, like_shards, whole
from ..layers import DropoutLayer
from ..recipe import Recipe
from ..tensor_file import check_fit, read_tensors
from .regularize import Regularization, regularize_

RECIPE_FILE = "regularization.yaml"
LEARNED_FILE = "regularization.safetensors"


def save_recipe(folder: str | Path, recipe: Recipe) -> None:
    """Write a recipe to ``regularization.yaml``.

    Args:
        folder: the model's folder, made when missing.
        recipe: the recipe.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECIPE_FILE).write_text(recipe.to_yaml(), encoding="utf-8")


def load_recipe(folder: str | Path) -> Recipe:
    """Read the recipe that was saved beside a model.

    Args:
        folder: the model's folder, or the recipe's own file.

    Raises:
        InputError: when the folder holds none, or one that cannot be read.
    """
    path = Path(folder) if Path(folder).is_file() else Path(folder) / RECIPE_FILE
    if not path.is_file():
        raise InputError(f"{folder} holds no {RECIPE_FILE}; write one with td.save_recipe(folder, recipe).")
    return Recipe.from_yaml(path)


def save_regularized(folder: str | Path, handle: Regularization) -> None:
    """Write the recipe of a regularized model, and what its layers have learned, beside the model.

    Usage::

        model.save_pretrained(folder)
        td.save_regularized(folder, handle)

    For a sharded model every process must call it, and the first one writes.

    Args:
        folder: the model's folder, made when missing.
        handle: what `regularize_` returned.

    Raises:
        InputError: for anything but a handle, or a recipe with arguments that no file can hold.
    """
    from safetensors.torch import save_file

    if not isinstance(handle, Regularization):
        raise InputError(
            "Write td.save_regularized(folder, handle) with what td.regularize_ returned, not "
            f"{type(handle).__name__}."
        )
    learned = learned_state(handle)
    tensors = {key: whole(tensor.detach()).contiguous() for key, tensor in learned.items()}
    if any(map(is_sharded, learned.values())) and torch.distributed.get_rank():
        return
    folder = Path(folder)
    save_recipe(folder, handle.recipe)
    if tensors:
        save_file(tensors, folder / LEARNED_FILE, {"format": "pt"})
    else:
        # One of an earlier recipe would be taken for this one's.
        (folder / LEARNED_FILE).unlink(missing_ok=True)


def load_regularized(folder: str | Path, model: nn.Module) -> Regularization:
    """Regularize a loaded model with the recipe saved beside it, and give its layers what they had learned.

    Usage::

        model = AutoModelForCausalLM.from_pretrained(folder)
        handle = td.load_regularized(folder, model)

    Args:
        folder: the model's folder, to which `save_regularized` wrote.
        model: the plain model; it may have another head than the one that was saved.

    Returns:
        the handle, at progress 0.

    Raises:
        InputError: when a file is missing or does not fit the model; the model is then as it was.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"Write td.load_regularized(folder, model) with a torch module, not {type(model).__name__}."
        )
    path = Path(folder) / LEARNED_FILE
    handle = regularize_(model, load_recipe(folder))
    try:
        restore(learned_state(handle), path)
    except Exception:
        handle.remove()
        raise
    return handle


def learned_state(handle: Regularization) -> dict[str, Tensor]:
    """Return the tensors of a handle's layers, by their names below the base model."""
    sources = tuple(rule.layer.shared_source for rule in handle.recipe.rules if rule.layer.shared_source)
    layers: list[DropoutLayer] = [placed.layer for placed in handle.placed]
    # A head is not always there, and the names of the rest do not depend on it.
    prefix = f"{getattr(handle.model, 'base_model_prefix', '')}."
    state = {}
    for path, module in handle.model.named_modules():
        if isinstance(module, sources) or any(module is layer for layer in layers):
            named = module.state_dict(prefix=f"{path}.", keep_vars=True)
            state |= {key.removeprefix(prefix): tensor for key, tensor in named.items()}
    return state


def restore(wanted: dict[str, Tensor], path: Path) -> None:
    """Fill tensors from a file that holds exactly these.

    Raises:
        InputError: when it does not.
    """
    if not wanted:
        return
    if not path.is_file():
        raise InputError(
            f"{path.parent} holds a recipe with learned layers but no {LEARNED_FILE}; write it with "
            "td.save_regularized(folder, handle), or start anew with td.regularize_(model, "
            "td.load_recipe(folder))."
        )
    stored = read_tensors(path)
    check_fit(path, stored, wanted)
    for key, tensor in wanted.items():
        tensor.data.copy_(like_shards(stored[key], tensor))
