"""Models that no layer can be put into as they are, each with what to type instead."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from ..errors import InputError
from ..kernels.sharded import shards_parameters
from ..kernels.torch_internals import is_compiled

if TYPE_CHECKING:
    from .regularize import Regularization

# The attribute of a regularized model, in its own dictionary: it is no module and no state.
HANDLE = "regularization_handle"


def refuse_wrapped(model: nn.Module) -> None:
    """Raise InputError for a model whose wrapper or compiler would not see a new layer."""
    for path, module in model.named_modules():
        where = f"{path} in the model" if path else "The model"
        if is_compiled(module):
            raise InputError(
                f"{where} is already compiled; call td.regularize_ first and torch.compile after it."
            )
        if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            raise InputError(
                f"{where} is wrapped in {type(module).__name__} already, which would not share the gradients "
                "of new layers; call td.regularize_ on the model itself and wrap it after."
            )
        if shards_parameters(module):
            raise InputError(
                f"{where} is sharded by FSDP already, which would not share the gradients of new layers; "
                "call td.regularize_ on the whole model and shard it after."
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                f"{where} is a TorchScript module, whose code cannot be changed; call td.regularize_ on the "
                "Python model that it was made from."
            )
        if any(nn.parameter.is_lazy(parameter) for parameter in module.parameters(recurse=False)):
            raise InputError(f"{where} has no sizes yet; run one forward before td.regularize_.")


def handle_of(model: nn.Module) -> "Regularization":
    """Return the handle of a regularized model, for when nothing holds it any more.

    Args:
        model: what `regularize_` or `set_rates` was given, or what wraps it.

    Raises:
        InputError: for a model that is not regularized.
    """
    handle = handle_on(model)
    if handle is None:
        raise InputError(
            f"This {type(model).__name__} is not regularized; call td.regularize_ first, or ask for the "
            "handle of the larger model that was given to it."
        )
    return handle


def handle_on(model: nn.Module) -> "Regularization | None":
    """Return the handle of a regularized model; None for any other."""
    handles = (vars(module).get(HANDLE) for module in model.modules())
    return next((handle for handle in handles if handle is not None), None)


def refuse_second(model: nn.Module) -> None:
    """Raise InputError for a model that is regularized already, naming the handle and what it placed."""
    handle = handle_on(model)
    if handle is None:
        return
    names = [placed.site.name for placed in handle.placed]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    raise InputError(
        f"The model is regularized already; call remove() on the handle that td.{handle.made_by} returned "
        f"for {', '.join(names[:3])}{more}, or td.handle_of(model).remove(), before a second. To change "
        "rates alone, write td.handle_of(model).update({...})."
    )
