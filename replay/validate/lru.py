"""The LRU batches of all CPUs, emptied: with them go the references they hold."""

from __future__ import annotations

import contextlib
import mmap
from typing import Final

MADV_COLLAPSE: Final = 25
"""include/uapi/asm-generic/mman-common.h."""

SIZE: Final = 4 << 20
"""Holds a whole PMD-sized piece wherever it lies."""


def drain() -> None:
    """Empty the LRU batches of all CPUs; does nothing where the kernel cannot collapse pages.

    MADV_COLLAPSE calls lru_add_drain_all() before it looks at the memory it is given, which is empty here
    (Linux kernel commit 7d8faaf15545 "mm/madvise: introduce MADV_COLLAPSE sync hugepage collapse", in v6.1).
    """
    with (
        mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory,
        contextlib.suppress(OSError),
    ):
        memory.madvise(MADV_COLLAPSE)
