"""How every native loop is compiled, and how it is handed an address."""

from collections.abc import Callable
from typing import Any

import numba
from numba.core import cgutils, types
from numba.extending import intrinsic

# Products and sums may fuse; nothing else of the arithmetic changes, NaN and infinity included.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}


def compiled(function: Callable[..., Any], *, reordered: bool = False) -> Callable[..., Any]:
    """Compile at the first call, and keep the machine code on disk where there is a place to write.

    The lock of the interpreter is released meanwhile, and a division by zero gives infinity, as in PyTorch.

    Args:
        function: the loop.
        reordered: whether its sums may run in another order than written, as vector instructions need it.
    """
    compiler: Any = numba.njit
    options = OPTIONS | ({"fastmath": {"contract", "reassoc", "nsz"}} if reordered else {})
    try:
        return compiler(cache=True, **options)(function)
    except RuntimeError:  # numba found no folder for its cache that can be written
        return compiler(**options)(function)


@intrinsic
def as_pointer(typing_context, address):
    """Turn an address into a pointer."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate
