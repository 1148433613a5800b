"""A process with 2 GiB of memory (less on a small machine), half of it offered huge pages, that waits."""

from __future__ import annotations

import mmap
import os
import signal

GIB = 1 << 30


def touched(size: int, advice: int) -> mmap.mmap:
    """Private anonymous memory, every page written."""
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(advice)
    for offset in range(0, size, mmap.PAGESIZE):
        memory[offset] = 1
    return memory


def main() -> None:
    available = os.sysconf("SC_AVPHYS_PAGES") * mmap.PAGESIZE
    half = min(GIB, available // 4) // mmap.PAGESIZE * mmap.PAGESIZE
    kept = touched(half, mmap.MADV_NOHUGEPAGE), touched(half, mmap.MADV_HUGEPAGE)
    print(f"ready, {sum(map(len, kept)) >> 20} MiB", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
