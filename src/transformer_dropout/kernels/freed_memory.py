"""Freed memory that stays with the process, so that a training step need not ask for it again."""

import ctypes
import sys

# Of glibc's malloc.h. Larger blocks than this are always given back.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
NEVER, LARGEST = -1, 32 * 2**20


def keep_freed_memory() -> bool:
    """Tell the C library to keep what tensors on a processor free, for those of the next step.

    By itself glibc returns it, and the system hands it out again page by page, each filled with zeros first.
    The process stays as large as it was at its largest. Other C libraries have no such setting.

    Returns:
        whether it was set.

    Reference: mallopt(3), https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and bool(mallopt(TRIM_THRESHOLD, NEVER) and mallopt(MMAP_THRESHOLD, LARGEST))
