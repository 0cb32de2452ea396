"""The rule that chooses between pure PyTorch and the native extra."""

import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode

PURE: ContextVar[bool] = ContextVar("pure_pytorch", default=False)
DTYPES = (torch.float32, torch.bfloat16)
GPU_DTYPES = (*DTYPES, torch.float16)


@contextmanager
def pure_pytorch() -> Iterator[None]:
    """Use no native code inside, as where numba is not installed."""
    token = PURE.set(True)
    try:
        yield
    finally:
        PURE.reset(token)


def takes_native(*tensors: Tensor) -> bool:
    """Say whether native code computes with these tensors.

    It does in eager mode, where numba is installed, on plain contiguous float32 or bfloat16 tensors in the
    memory of the processor. A compiled graph takes the pure version, which its compiler fuses, and so does
    code whose operations somebody watches (a count of operations, an audit): native code shows none.
    """
    return runs_native() and all(map(plain, tensors))


def runs_native() -> bool:
    """Say whether native code runs at all now."""
    return not watched() and has_native()


def has_native() -> bool:
    """Return whether there is native code that may run, by itself or as an operation that is seen whole."""
    return not PURE.get() and numba_installed()


def transformed() -> bool:
    """Return whether a program is being made of operations: compiled, or differentiated forwards."""
    return torch.compiler.is_compiling() or forward_ad._current_level >= 0


def watched() -> bool:
    """Say whether operations are being compiled, counted, differentiated forwards or looked at one by one."""
    return (
        transformed()
        or _get_current_dispatch_mode() is not None
        # A default device is a mode too, but one that looks at nothing.
        or not all(isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())
    )


def takes_triton(*tensors: Tensor) -> bool:
    """Say whether kernels in Triton compute with these tensors: the rule of ``takes_native``, on a GPU."""
    return (
        not (watched() or PURE.get())
        and all(unwrapped(tensor) and tensor.device.type == "cuda" for tensor in tensors)
        and triton_installed()
        and all(tensor.dtype in GPU_DTYPES and tensor.is_contiguous() for tensor in tensors)
        and all(torch.cuda.get_device_capability(tensor.device) >= (8, 0) for tensor in tensors)
    )


@functools.cache
def triton_installed() -> bool:
    """Say whether Triton is there, without loading it; PyTorch brings it along where it brings CUDA."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def numba_installed() -> bool:
    """Say whether the native extra is there, without loading it."""
    return importlib.util.find_spec("numba") is not None


def plain(tensor: Tensor) -> bool:
    """Say whether native code can read a tensor's memory as it lies there."""
    return dense(tensor) and tensor.dtype in DTYPES and tensor.is_contiguous()


def dense(tensor: Tensor) -> bool:
    """Say whether a tensor is an ordinary one in the memory of the processor, with no wrapper around it."""
    return tensor.is_cpu and unwrapped(tensor)


def unwrapped(tensor: Tensor) -> bool:
    """Say whether a tensor is an ordinary one, whose memory holds what it shows."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        # What torch.autograd.grad(..., is_grads_batched=True) hands to a backward.
        and not torch._C._functorch.is_legacy_batchedtensor(tensor)
    )
