"""Memory that a pull gives back to the system as it goes, instead of keeping the most that it ever had.

Pages are read by several threads, in blocks of megabytes. Arrow's default pool and glibc's malloc both keep what each
thread once had; together that is more than the pull needs. Where the system has neither jemalloc nor glibc the same
rows take more memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator

import pyarrow as pa

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""of mallopt(3)"""
_BLOCK_BYTES = 8 << 20
"""allocations of this size and more are returned when they are freed: larger than the blocks of pages, which would
otherwise cost the system's zeroing of fresh memory each time; by default the limit grows with use"""
_SPARE_BYTES = 32 << 20
"""free memory at the end of the heap that is kept until `give_back`, for the same reason: some blocks"""


@contextlib.contextmanager
def frugal() -> Iterator[None]:
    """Arrow takes its memory from jemalloc meanwhile, and Python's collector leaves alone what was there before, since
    what was imported is no garbage. The settings of malloc stay as they are for the process."""
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_ARENA_MAX, 1)
        libc.mallopt(_MMAP_THRESHOLD, _BLOCK_BYTES)
        libc.mallopt(_TRIM_THRESHOLD, _SPARE_BYTES)
    before = pa.default_memory_pool()
    if "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())
    frozen = gc.get_freeze_count() > 0  # by the caller, whose it stays
    if not frozen:
        gc.freeze()
    try:
        yield
    finally:
        if not frozen:
            gc.unfreeze()
        pa.set_memory_pool(before)


def give_back() -> None:
    """Return what is free now."""
    pa.default_memory_pool().release_unused()
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
