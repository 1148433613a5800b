# SPDX-License-Identifier: Apache-2.0
"""A process with 2 GiB of memory (less on a small machine) that waits.

A third is pages of 4 KiB, a third is offered huge pages, a third too, which are then mapped by PTEs: a
change of protection, there and back, splits a PMD mapping, not the folio behind it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal

GIB = 1 << 30
PMD_SIZE = 2 << 20


def touched(size: int, advice: int) -> mmap.mmap:
    """Private anonymous memory, every page written."""
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(advice)
    for offset in range(0, size, mmap.PAGESIZE):
        memory[offset] = 1
    return memory


def split(memory: mmap.mmap) -> None:
    """Have every huge page of it mapped by PTEs."""
    libc = ctypes.CDLL(None)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for address in range(start + -start % PMD_SIZE, start + len(memory), PMD_SIZE):
        for protection in (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE):
            libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), protection)


def main() -> None:
    available = os.sysconf("SC_AVPHYS_PAGES") * mmap.PAGESIZE
    third = min(2 * GIB, available // 2) // 3 // PMD_SIZE * PMD_SIZE
    kept = [
        touched(third, advice) for advice in (mmap.MADV_NOHUGEPAGE, mmap.MADV_HUGEPAGE, mmap.MADV_HUGEPAGE)
    ]
    split(kept[2])
    print(f"ready, {sum(map(len, kept)) >> 20} MiB", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
