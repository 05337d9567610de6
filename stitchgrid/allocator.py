"""Keeps freed memory in the process: a large buffer is otherwise fetched from the system, page by page, at each use.

Measured with ResNet-20 on CIFAR-10 and two cores: a forward pass of 1,024 images takes 0.48 ms an image instead of
1.10 ms (channels-last), one of 256 images 0.47 ms instead of 0.65 ms.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
#: Bytes of a buffer; a larger one is given back at once, so that no holes of its size are left. Some refuse the first.
LARGEST_KEPT = (64 << 20, 32 << 20)
KEPT_TOP = 1 << 30  # bytes at the top of the heap


def keep_freed_memory() -> bool:
    """Tell malloc to reuse buffers instead of giving them back; return whether it listens: glibc does, others vary."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    keeps_buffers = any(mallopt(_M_MMAP_THRESHOLD, size) for size in LARGEST_KEPT)
    return keeps_buffers and bool(mallopt(_M_TRIM_THRESHOLD, KEPT_TOP))
