# SPDX-License-Identifier: Apache-2.0
"""The LRU batches of all CPUs, emptied: with them go the references they hold."""

from __future__ import annotations

import errno
import mmap
from typing import Final

MADV_COLLAPSE: Final = 25
"""include/uapi/asm-generic/mman-common.h."""

SIZE: Final = 4 << 20
"""Holds a whole piece of 2 MiB wherever it lies."""


def drain() -> bool:
    """Empty the LRU batches of all CPUs; returns whether the kernel did.

    MADV_COLLAPSE, here on memory of our own, calls lru_add_drain_all() before it looks at that memory (Linux
    kernel commit 7d8faaf15545 "mm/madvise: introduce MADV_COLLAPSE sync hugepage collapse", in v6.1).
    """
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[SIZE // 2] = 1
        try:
            memory.madvise(MADV_COLLAPSE)
        except OSError as error:
            # the advice is unknown; other failures come after the batches were emptied
            return error.errno != errno.EINVAL
        return True
