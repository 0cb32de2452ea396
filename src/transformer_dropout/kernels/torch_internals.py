"""Everything of PyTorch that is used here and not part of its public interface.

Each name is looked up when it is needed, in one function that says what happens without it: importing this
package never fails for a name that a release has moved. Tried with PyTorch 2.13.
"""

from collections.abc import Callable
from os.path import join
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

try:
    # Their lengths are asked for some fifty times in a step, and are far cheaper than the modes themselves.
    from torch._C import _len_torch_dispatch_stack as count_of_dispatch_modes
    from torch._C import _len_torch_function_stack as count_of_function_modes
    from torch.overrides import _get_current_function_mode_stack as function_modes
    from torch.utils._device import DeviceContext
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as dispatch_modes
except ImportError:
    function_modes = DeviceContext = dispatch_modes = None
    count_of_dispatch_modes = count_of_function_modes = None

CHECKPOINT_FILE = join("torch", "utils", "checkpoint.py")


def inside_backward() -> bool:
    """Return whether eager code runs inside a backward pass, as a checkpoint's recomputation does.

    Where it cannot be known, False: a recomputed penalty then stays in memory until the next one.
    """
    current = getattr(torch._C, "_current_graph_task_id", None)
    return current is not None and current() != -1


def hooks_of_saved_tensors() -> Any:
    """Return the innermost hooks for what is saved for a backward pass, as a checkpoint sets them.

    None without hooks; where it cannot be known, what equals nothing else.
    """
    hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return object() if hooks is None else hooks(True)


def recomputed_by(frame: FrameType) -> tuple[Any, str] | None:
    """Return what holds the function that a checkpoint under way computes again, and under which name.

    Args:
        frame: a Python frame; None is returned for any that is not that of a checkpoint.

    Raises:
        LookupError: where a checkpoint does not show it.
    """
    code = frame.f_code
    if not code.co_filename.endswith(CHECKPOINT_FILE):
        return None
    if code.co_qualname == "CheckpointFunction.forward":
        holder, name = frame.f_locals.get("ctx"), "run_function"
    elif code.co_qualname != "checkpoint":
        return None
    else:
        generator = getattr(frame.f_locals.get("gen"), "gi_frame", None)
        holder, name = getattr(generator, "f_locals", {}).get("new_frame"), "recompute_fn"
        if holder is None and frame.f_locals.get("use_reentrant"):
            # Its own frame is the other one.
            return None
    if not hasattr(holder, name):
        raise LookupError(f"{code.co_qualname} shows no {name}")
    return holder, name


def differentiates_forwards() -> bool:
    """Return whether forward-mode derivatives are being computed; where it cannot be known, True."""
    return getattr(forward_ad, "_current_level", 0) >= 0


def watching_modes() -> list[Any]:
    """Return the modes that are handed each operation now, the outermost first; none where none are known."""
    return [] if dispatch_modes is None else list(dispatch_modes())


def operations_are_watched() -> bool:
    """Return whether operations are looked at one by one, by a mode.

    Where it cannot be known, True: PyTorch's own operations then do the work of ours, which shows all of it.
    A default device is a mode too, but one that looks at nothing.
    """
    if function_modes is None or DeviceContext is None:
        return True
    if count_of_dispatch_modes is None or count_of_function_modes is None or count_of_dispatch_modes():
        return True
    return count_of_function_modes() > 0 and not all(isinstance(m, DeviceContext) for m in function_modes())


def is_functorch_wrapped(tensor: Tensor) -> bool:
    """Return whether a tensor stands for others, inside ``torch.func`` or a batched backward.

    Where it cannot be known, True: PyTorch's own operations then do the work.
    """
    functorch: Any = getattr(torch._C, "_functorch", None)
    try:
        # The second is what torch.autograd.grad(..., is_grads_batched=True) hands to a backward.
        return functorch.is_functorch_wrapped_tensor(tensor) or functorch.is_legacy_batchedtensor(tensor)
    except AttributeError:
        return True


def onednn_product() -> Any:
    """Return oneDNN's linear layer in float32, ``(x, weight, bias, "none", [], "")``; None without one."""
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def softmax_backward(gradient: Tensor, weights: Tensor) -> Tensor:
    """Return the gradient of a softmax over the last dimension, ``w (g - sum(g w))``, in one pass."""
    fused = getattr(torch, "_softmax_backward_data", None)
    if fused is None:
        return weights * (gradient - (gradient * weights).sum(-1, keepdim=True))
    return fused(gradient, weights, -1, weights.dtype)


def schema_of(func: Any) -> Any:
    """Return the schema of an operator's overload, which names its arguments; None of any other function."""
    return getattr(func, "_schema", None) if hasattr(func, "overloadpacket") else None


def is_compiled(module: nn.Module) -> bool:
    """Return whether `torch.compile` or ``module.compile`` was called on a module itself."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def is_batch_norm(module: nn.Module) -> bool:
    """Return whether a module normalises by statistics of the batch and keeps running ones."""
    return hasattr(module, "running_mean") and hasattr(module, "num_batches_tracked")


def hooks_of(module: nn.Module) -> list[Callable[..., Any]]:
    """Return a module's hooks around its forward."""
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def has_any_hook(module: nn.Module) -> bool:
    """Return whether any hook runs when a module does, the global ones and those of the backward included.

    Where it cannot be known, True: the module is then called as it is.
    """
    globally = getattr(nn.modules.module, "_has_any_global_hook", None)
    own = (module._backward_hooks, module._backward_pre_hooks)
    return bool(hooks_of(module)) or any(own) or globally is None or globally()


def own_parameters(module: nn.Module) -> dict[str, Any]:
    """Return the dictionary that holds a module's own parameters, where a plain tensor may stand in."""
    return module._parameters


def storage_identity(tensor: Tensor) -> int:
    """Return a number that tensors with the same storage share, on meta too."""
    return tensor.untyped_storage()._cdata
