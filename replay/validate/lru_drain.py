# SPDX-License-Identifier: Apache-2.0
"""Empty the LRU batches of all CPUs, and so drop the references that they hold."""

from __future__ import annotations

import errno
import mmap
from typing import Final

MADV_COLLAPSE: Final = 25
"""include/uapi/asm-generic/mman-common.h."""

SIZE: Final = 4 << 20
"""Bytes that hold an aligned piece of 2 MiB wherever the memory lies."""


def drain() -> bool:
    """Empty the LRU batches of all CPUs -> whether the kernel did.

    MADV_COLLAPSE calls lru_add_drain_all() before it looks at the memory, which here is our own (Linux kernel
    commit 7d8faaf15545 "mm/madvise: introduce MADV_COLLAPSE sync hugepage collapse", in v6.1).
    """
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[SIZE // 2] = 1
        try:
            memory.madvise(MADV_COLLAPSE)
        except OSError as error:
            # EINVAL: the kernel does not know the advice. Other errors come after the batches were emptied
            return error.errno != errno.EINVAL
        return True
