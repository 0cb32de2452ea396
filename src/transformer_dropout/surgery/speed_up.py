"""`speed_up_`: the same model and the same float32, in less time."""

from torch import nn

from ..errors import InputError
from ..kernels.linear import FastLinear


def speed_up_(model: nn.Module) -> None:
    """Let every ``nn.Linear`` of a model compute in float32 through oneDNN, in place.

    The rule is that results stay float32: this changes the order of sums and nothing else, so a run uses it
    by default. Where oneDNN is not the path (a GPU, autocast, a compiled graph) the layers compute as
    before. Parameters, names in the ``state_dict``, hooks and layers put in by ``regularize_``, before or
    after, stay as they are; subclasses of ``nn.Linear`` are left alone.

    Args:
        model: its linear layers change their class to ``FastLinear``.

    Raises:
        InputError: when the model has no ``nn.Linear``.
    """
    layers = [module for module in model.modules() if type(module) in (nn.Linear, FastLinear)]
    if not layers:
        raise InputError(
            f"speed_up_ found no nn.Linear in this {type(model).__name__}; give it a model that has some."
        )
    for layer in layers:
        layer.__class__ = FastLinear
