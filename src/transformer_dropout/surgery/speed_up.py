"""`speed_up_`: the same model and the same float32, in less time."""

from functools import partial

from torch import nn

from ..errors import InputError
from ..kernels.compiled_hooks import own_forward, set_own_forward
from ..kernels.linear import FAST, fast_forward, is_fast, is_fast_forward, is_plain_linear
from ._mlp import is_detour


class SpeedUp:
    """What `speed_up_` changed, and the way back.

    Args:
        layers: the linear layers that compute through oneDNN since then, by their paths.
    """

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        self._layers = layers

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the layers that were changed."""
        return tuple(self._layers)

    def remove(self) -> None:
        """Let the layers compute as they did; a second time does nothing."""
        for layer in self._layers.values():
            vars(layer).pop(FAST, None)
            if is_fast_forward(own_forward(layer)):
                set_own_forward(layer, None)


def speed_up_(model: nn.Module) -> SpeedUp:
    """Let every linear layer of a model compute in float32 through oneDNN, in place.

    The rule is that results stay float32: this changes the order of sums and nothing else, so a run uses it
    by default. Where oneDNN is not the path (a GPU, autocast, a compiled graph) the layers compute as
    before. Classes, parameters, names in the ``state_dict``, hooks and layers put in by ``regularize_``,
    before or after, stay as they are; subclasses of ``nn.Linear``, and layers that somebody gave a forward of
    their own, are left alone.

    Args:
        model: its ``nn.Linear`` and transformers' ``Conv1D`` (GPT-2's) are reached.

    Returns:
        what was changed; its ``remove()`` undoes it exactly.

    Raises:
        InputError: when the model has no such layer.
    """
    found = {path: module for path, module in model.named_modules() if is_plain_linear(module)}
    if not found:
        raise InputError(
            f"speed_up_ found no nn.Linear in this {type(model).__name__}; give it a model that has some."
        )
    changed = {}
    for path, layer in found.items():
        forward = own_forward(layer)
        if is_fast(layer) or not (forward is None or is_detour(forward)):
            continue
        vars(layer)[FAST] = True
        if forward is None:
            set_own_forward(layer, partial(fast_forward, layer))
        changed[path] = layer
    return SpeedUp(changed)
