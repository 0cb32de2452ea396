"""Look at a model by running it, and leave no trace."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from ...errors import InputError
from ...kernels.torch_internals import is_compiled
from .host_random import host_random_unchanged


@contextmanager
def unchanged(model: nn.Module, *, random_state: bool = True) -> Iterator[None]:
    """Put back, at the end, all that forwards change in a model.

    That is each module's mode, plain attributes, hooks and parts, the values of its buffers (running means),
    and the global random states: torch's of the CPU and of the model's devices, Python's and NumPy's.

    Args:
        model: any module.
        random_state: whether the random states are put back too.
    """
    attributes = {module: dict(vars(module)) for module in model.modules()}
    # Models of transformers capture what their layers return by hooks that the first forward installs.
    hooks = [
        (value, dict(value))
        for module in model.modules()
        for name, value in vars(module).items()
        if "hooks" in name and isinstance(value, dict)
    ]
    buffers = {module: dict(module._buffers) for module in model.modules()}
    parts = {module: dict(module._modules) for module in model.modules()}
    values = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with (
        torch.random.fork_rng(devices=cuda_devices(model), enabled=random_state),
        host_random_unchanged() if random_state else nullcontext(),
    ):
        try:
            yield
        finally:
            for module, before in attributes.items():
                restore_attributes(module, before)
                module._buffers.clear()
                module._buffers.update(buffers[module])
                if module._modules != parts[module]:
                    # Some choose the attention that they run in their first forward.
                    module._modules.clear()
                    module._modules.update(parts[module])
            for registered, known in hooks:
                if list(registered) != list(known):
                    registered.clear()
                    registered.update(known)
            with torch.no_grad():
                for buffer, value in values:
                    buffer.copy_(value)


def restore_attributes(module: nn.Module, before: dict) -> None:
    """Give a module its plain attributes back, the same objects as before."""
    now = vars(module)
    for name in now.keys() - before.keys():
        del now[name]
    now.update(before)


def cuda_devices(model: nn.Module) -> list[torch.device]:
    """Return the CUDA devices that hold parameters or buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return list({tensor.device for tensor in tensors if tensor.device.type == "cuda"})


def refuse_what_cannot_be_watched(model: nn.Module, verb: str) -> None:
    """Raise InputError for a model whose forwards cannot be seen from outside.

    Args:
        model: the model.
        verb: the function that the user called, for the message.
    """
    for path, module in model.named_modules():
        if is_compiled(module):
            raise InputError(
                f"{path or 'The model'} is compiled, and a compiled graph hides its operations; call {verb} "
                "before torch.compile, or on the model that was compiled (compiled._orig_mod)."
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                f"{path or 'The model'} is a TorchScript module, which hides its operations; call {verb} on "
                "the Python model that it was made from."
            )
        if any(nn.parameter.is_lazy(parameter) for parameter in module.parameters(recurse=False)):
            raise InputError(f"{path or 'The model'} has no parameters yet; run one forward before {verb}.")
