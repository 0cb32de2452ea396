"""The rule that chooses between pure PyTorch and the native extra."""

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from .torch_internals import differentiates_forwards, is_functorch_wrapped, operations_are_watched

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
    """Return whether native code computes with these tensors.

    It does in eager mode, where numba is installed, on plain contiguous float32 or bfloat16 tensors in the
    memory of the processor. A compiled graph takes the pure version, which its compiler fuses, and so does
    code whose operations somebody watches (a count of operations, an audit): native code shows none.
    """
    return not (is_watched() or PURE.get()) and all(map(plain, tensors)) and numba_installed()


def runs_native() -> bool:
    """Return whether native code runs at all now."""
    return not is_watched() and has_native()


def has_native() -> bool:
    """Return whether there is native code that may run, by itself or as an operation that is seen whole."""
    return not PURE.get() and numba_installed()


def is_transformed() -> bool:
    """Return whether a program is being made of operations: compiled, or differentiated forwards."""
    return torch.compiler.is_compiling() or differentiates_forwards()


def is_watched() -> bool:
    """Return whether operations are compiled, counted, differentiated forwards or looked at one by one."""
    return is_transformed() or operations_are_watched()


def takes_triton(*tensors: Tensor) -> bool:
    """Return whether kernels in Triton compute with these tensors: the rule of ``takes_native``, on a GPU."""
    return (
        not (is_watched() or PURE.get())
        and all(is_unwrapped(tensor) and tensor.device.type == "cuda" for tensor in tensors)
        and triton_installed()
        and all(tensor.dtype in GPU_DTYPES and tensor.is_contiguous() for tensor in tensors)
        and all(torch.cuda.get_device_capability(tensor.device) >= (8, 0) for tensor in tensors)
    )


@functools.cache
def triton_installed() -> bool:
    """Return whether Triton is there and can be loaded; PyTorch brings it along where it brings CUDA."""
    return can_be_loaded("triton")


@functools.cache
def numba_installed() -> bool:
    """Return whether the native extra is there and can be loaded."""
    return can_be_loaded("numba")


def can_be_loaded(package: str) -> bool:
    """Return whether a package can be imported; one that is there but broken is told in a warning."""
    if importlib.util.find_spec(package) is None:
        return False
    try:
        importlib.import_module(package)
    # Whatever a broken installation raises: a missing library, another NumPy, an attribute that moved.
    except Exception as error:
        warnings.warn(
            f"{package} is installed but cannot be loaded ({error}); PyTorch computes in its place. Install "
            "it anew, or uninstall it.",
            stacklevel=2,
        )
        return False
    return True


def plain(tensor: Tensor) -> bool:
    """Return whether native code can read a tensor's memory as it lies there."""
    return dense(tensor) and tensor.dtype in DTYPES and tensor.is_contiguous()


def dense(tensor: Tensor) -> bool:
    """Return whether a tensor is an ordinary one in the memory of the processor, without a wrapper."""
    return tensor.is_cpu and is_unwrapped(tensor)


def is_unwrapped(tensor: Tensor) -> bool:
    """Return whether a tensor is an ordinary one, whose memory holds what it shows."""
    return type(tensor) in (Tensor, nn.Parameter) and not is_functorch_wrapped(tensor)
