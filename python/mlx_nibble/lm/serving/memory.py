"""The process's memory: free memory goes back to the system."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

# Options of mallopt() in glibc's malloc.h.
_MMAP_THRESHOLD, _ARENA_MAX = -3, -8
# glibc's own first threshold. A sequence's keys of one layer are larger.
_LARGE = 128 << 10


def give_back() -> None:
    """Have glibc return large blocks to the system as soon as they are free.

    glibc raises its threshold to 32 MiB when blocks are freed. The KV caches of many
    sequences then lie scattered in the heaps of several threads, which never shrink.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_ARENA_MAX, 2)


def machine_bytes() -> int:
    """Return the size of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
