"""A regularization on disk, beside the model it belongs to: its recipe and the weights of its layers."""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import InputError
from ..recipe import Recipe
from ..regularize import Regularization, regularize_

RECIPE_FILE, WEIGHTS_FILE = "regularization.yaml", "regularization.safetensors"


def save_regularization(regularization: Regularization, folder: str | Path, *, write: bool = True) -> None:
    """Write ``regularization.yaml`` and, where layers have weights, ``regularization.safetensors``.

    Args:
        regularization: what `regularize_` returned.
        folder: where the model itself is saved; made when missing.
        write: False in all processes but one. Every process must call it, since weights may be sharded.
    """
    tensors = {name: whole(tensor) for name, tensor in layer_tensors(regularization).items()}
    if not write:
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECIPE_FILE).write_text(regularization.recipe.to_yaml(), encoding="utf-8")
    if tensors:
        save_file(tensors, folder / WEIGHTS_FILE)


def load_regularization_(model: nn.Module, folder: str | Path) -> Regularization:
    """Put the regularization that was saved beside a model into the model that was loaded from there.

    Args:
        model: as ``from_pretrained(folder)`` returned it; changed in place.
        folder: where `save_regularization`, or a Trainer with `RegularizedTrainerMixin`, saved it.

    Raises:
        InputError: when the folder holds no recipe, or not the weights of its layers.
    """
    folder = Path(folder)
    if not (folder / RECIPE_FILE).is_file():
        raise InputError(f"{folder} holds no {RECIPE_FILE}; give the folder that the model was saved in.")
    regularization = regularize_(model, Recipe.from_yaml(folder / RECIPE_FILE))
    if layer_tensors(regularization) and not (folder / WEIGHTS_FILE).is_file():
        regularization.remove()
        raise InputError(f"{folder} holds no {WEIGHTS_FILE}, so the weights of its layers are unknown.")
    load_layers(regularization, folder)
    regularization.set_progress(1.0)
    return regularization


def load_layers(regularization: Regularization, folder: Path) -> None:
    """Read the layers' weights from a folder, if it has them."""
    if (folder / WEIGHTS_FILE).is_file():
        saved = load_file(folder / WEIGHTS_FILE)
        for name, tensor in layer_tensors(regularization).items():
            # Where the model is sharded, its own checkpoint has brought them already.
            if not hasattr(tensor, "full_tensor"):
                tensor.copy_(saved[name])


def layer_tensors(regularization: Regularization) -> dict[str, Tensor]:
    """Return the state of the layers that a regularization placed, by the names in its model."""
    placed = {id(placed.layer) for placed in regularization.placed}
    shared = tuple({p.rule.layer.shared_source for p in regularization.placed} - {None})
    modules = regularization.model.named_modules()
    paths = [path for path, module in modules if id(module) in placed or isinstance(module, shared)]
    state = regularization.model.state_dict()
    return {name: state[name] for name in state if any(name.startswith(f"{path}.") for path in paths)}


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor for a file, gathered where it is sharded."""
    full_tensor = getattr(tensor, "full_tensor", None)
    gathered = tensor if full_tensor is None else full_tensor()
    return gathered.detach().cpu().contiguous()
