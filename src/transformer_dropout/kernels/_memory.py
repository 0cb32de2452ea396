"""Memory for large results."""

import ctypes
import functools
import sys
from typing import Any

import torch
from torch import Tensor

from ._native import dense

# From this size on memory is always fresh from the system, which hands it out page by page as it is written.
LARGE = 2**25
HUGE_PAGE = 2**21
MADV_HUGEPAGE = 14


def empty_like(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an empty tensor like another, a large one in huge pages where the system has them.

    Writing to a fresh page of 4 KiB takes longer than filling it, four times as long for all of a large tensor.
    """
    result = torch.empty_like(tensor, dtype=dtype)
    if result.nbytes >= LARGE and dense(result) and (library := system_library()) is not None:
        start = -(-result.data_ptr() // HUGE_PAGE) * HUGE_PAGE
        length = (result.data_ptr() + result.nbytes) // HUGE_PAGE * HUGE_PAGE - start
        # An advice: where it is refused nothing changes.
        library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), MADV_HUGEPAGE)
    return result


@functools.cache
def system_library() -> Any:
    """Return the system's library on Linux, None elsewhere."""
    return ctypes.CDLL(None) if sys.platform == "linux" else None
