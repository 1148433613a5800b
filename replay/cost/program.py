# SPDX-License-Identifier: Apache-2.0
"""The process of one measurement: it maps memory as its arguments say, prints `ready PID`, and waits.

It runs as a script of its own: program.py KIND MIB [KIND MIB]... [--file PATH]. It does all its work before
`ready`. Then it is killed, so that only its memory is torn down.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import signal
import sys
from collections.abc import Callable
from typing import Final

MIB: Final = 1 << 20
PMD: Final = mmap.PAGESIZE * (mmap.PAGESIZE // 8)
"""Bytes that one page-table page maps."""

SPARSE_STEP: Final = 16
"""Kind `sparse` touches one page in so many."""

MAP_NORESERVE: Final = 0x4000
"""Kinds that touch few of their pages map more than overcommit allows. `mmap` has it from Python 3.13 on."""

VMA_PAGES: Final = 4
"""Kind `vmas` makes VMAs of so many pages."""


def touch(memory: mmap.mmap, step: int = 1) -> None:
    """Write one byte to every `step`-th page."""
    stride = step * mmap.PAGESIZE
    memory[::stride] = bytes(-(-len(memory) // stride))


def anonymous(size: int, advice: int, step: int = 1) -> mmap.mmap:
    """Private anonymous memory, touched."""
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    memory.madvise(advice)
    touch(memory, step)
    return memory


def protect(memory: mmap.mmap, offset: int, size: int, protection: int) -> None:
    """mprotect(2) of a part."""
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + offset), ctypes.c_size_t(size), protection)


def small(size: int, path: str) -> mmap.mmap:
    """Pages of order 0."""
    return anonymous(size, mmap.MADV_NOHUGEPAGE)


def scattered(size: int, path: str) -> mmap.mmap:
    """Pages of order 0, touched in a random order: neighbours are seldom in neighbouring frames."""
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    places = list(range(0, size, mmap.PAGESIZE))
    random.Random(1).shuffle(places)
    for place in places:
        memory[place] = 0
    return memory


def large(size: int, path: str) -> mmap.mmap:
    """Folios of the largest size that the settings offer: mapped by PMDs, or by PTEs if they are smaller."""
    return anonymous(size, mmap.MADV_HUGEPAGE)


def split(size: int, path: str) -> mmap.mmap:
    """PMD-sized folios mapped by PTEs: mprotect(2), there and back, splits the PMD mapping."""
    memory = anonymous(size, mmap.MADV_HUGEPAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for offset in range(-start % PMD, size, PMD):
        for protection in (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE):
            protect(memory, offset, mmap.PAGESIZE, protection)
    return memory


def sparse(size: int, path: str) -> mmap.mmap:
    """Single pages far apart: few pages for each page-table page."""
    return anonymous(size * SPARSE_STEP, mmap.MADV_NOHUGEPAGE, SPARSE_STEP)


def tables(size: int, path: str) -> mmap.mmap:
    """Single pages, each alone in its page-table page."""
    step = PMD // mmap.PAGESIZE
    return anonymous(size * step, mmap.MADV_NOHUGEPAGE, step)


def vmas(size: int, path: str) -> mmap.mmap:
    """Many VMAs: every other group of pages is read-only, one page touched in each group."""
    memory = anonymous(size, mmap.MADV_NOHUGEPAGE, VMA_PAGES)
    group = VMA_PAGES * mmap.PAGESIZE
    for offset in range(0, min(size, MAX_VMAS * group), 2 * group):
        protect(memory, offset, group, mmap.PROT_READ)
    return memory


MAX_VMAS: Final = 50_000
"""Fewer than vm.max_map_count allows by default."""


def file(size: int, path: str) -> mmap.mmap:
    """Pages of the page cache, read through a private mapping."""
    descriptor = os.open(path, os.O_RDONLY)
    memory = mmap.mmap(descriptor, size, mmap.MAP_PRIVATE, mmap.PROT_READ)
    os.close(descriptor)
    memory[:: mmap.PAGESIZE]
    return memory


def shared(size: int, path: str) -> mmap.mmap:
    """Pages of the page cache, written through a shared mapping: dirty PTEs.

    The file outlives the process.
    """
    descriptor = os.open(path, os.O_RDWR)
    memory = mmap.mmap(descriptor, size, mmap.MAP_SHARED)
    os.close(descriptor)
    touch(memory)
    return memory


KINDS: Final[dict[str, Callable[[int, str], mmap.mmap]]] = {
    "small": small,
    "scattered": scattered,
    "large": large,
    "split": split,
    "sparse": sparse,
    "tables": tables,
    "vmas": vmas,
    "file": file,
    "shared": shared,
    "forked": small,
}
"""Kind -> the function that maps it. `forked`: a parent keeps the memory, and its child is measured."""


def main() -> None:
    words = sys.argv[1:]
    path = words.pop() if "--file" in words else ""
    words = [word for word in words if word != "--file"]
    kinds = list(zip(words[::2], map(int, words[1::2]), strict=True))
    kept = [KINDS[kind](mib * MIB, path) for kind, mib in kinds if kind == "forked"]
    if kept and os.fork():
        signal.pause()
    kept += [KINDS[kind](mib * MIB, path) for kind, mib in kinds if kind != "forked"]
    print(f"ready {os.getpid()}", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
