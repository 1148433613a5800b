# SPDX-License-Identifier: Apache-2.0
"""The programs of the built-in workloads: each shapes its own memory, then ends without taking it down.

It runs as a script of its own, `workload_programs.py NAME`, under the interpreter that runs replay. It maps
all memory by system calls, so that only the kernel decides where the memory lies.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Final

PAGE: Final = mmap.PAGESIZE
MIB: Final = 1 << 20
PMD: Final = PAGE * PAGE // 8
"""Bytes that one page-table page maps."""

MADV_PAGEOUT: Final = 21
MREMAP_MAYMOVE: Final = 1
MREMAP_FIXED: Final = 2
"""include/uapi/asm-generic/mman-common.h, include/uapi/linux/mman.h."""

PROT_NONE: Final = 0
READ_WRITE: Final = mmap.PROT_READ | mmap.PROT_WRITE
PRIVATE: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
SHARED: Final = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS

libc: Final = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p


def call(name: str, *arguments: int) -> int:
    """A system call by its C name; addresses and sizes in bytes. Raises `OSError`."""
    result = getattr(libc, name)(*(ctypes.c_long(value) for value in arguments))
    if result in (-1, ctypes.c_void_p(-1).value):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return int(result or 0)


def map_memory(size: int, flags: int = PRIVATE, fd: int = -1, protection: int = READ_WRITE) -> int:
    """mmap() -> its address."""
    return call("mmap", 0, size, protection, flags, fd, 0)


def map_aligned(size: int, alignment: int = PMD) -> int:
    """Anonymous private memory at an aligned address."""
    address = map_memory(size + alignment)
    start = -(-address // alignment) * alignment
    if start > address:
        call("munmap", address, start - address)
    call("munmap", start + size, address + alignment - start)
    return start


def write(address: int, size: int, step: int = PAGE) -> None:
    """Write one byte to every `step` bytes."""
    for place in range(address, address + size, step):
        ctypes.memset(place, 1, 1)


def read(address: int, size: int, step: int = PAGE) -> None:
    """Read one byte of every `step` bytes."""
    for place in range(address, address + size, step):
        ctypes.string_at(place, 1)


def forked(child: Callable[[], None]) -> int:
    """Run `child` in a forked process."""
    pid = os.fork()
    if not pid:
        child()
        os._exit(0)
    return pid


def ordinary() -> None:
    """Pages of order 0, more than one gather holds."""
    address = map_memory(48 * MIB)
    call("madvise", address, 48 * MIB, mmap.MADV_NOHUGEPAGE)
    write(address, 48 * MIB)


def holes() -> None:
    """Unmapped pages between, some of them zapped again, and pages of zeros."""
    address = map_memory(16 * MIB)
    write(address, 8 * MIB, 3 * PAGE)
    write(address + 8 * MIB, 4 * MIB)
    for place in range(address + 8 * MIB, address + 12 * MIB, 7 * PAGE):
        call("madvise", place, PAGE, mmap.MADV_DONTNEED)
    read(address + 12 * MIB, 4 * MIB)


def thp_pmd() -> None:
    """PMD-mapped THPs, and the huge zero page."""
    address = map_aligned(8 * PMD)
    call("madvise", address, 8 * PMD, mmap.MADV_HUGEPAGE)
    write(address, 6 * PMD)
    read(address + 6 * PMD, 2 * PMD)


def thp_pte() -> None:
    """THPs mapped by PTEs: whole, with pages missing, shared with a child that let pages go."""
    address = map_aligned(8 * PMD)
    call("madvise", address, 8 * PMD, mmap.MADV_HUGEPAGE)
    write(address, 8 * PMD)
    call("mprotect", address + 5 * PAGE, PAGE, mmap.PROT_READ)
    call("madvise", address + PMD + 7 * PAGE, 9 * PAGE, mmap.MADV_DONTNEED)
    call("munmap", address + 3 * PMD - 100 * PAGE, 100 * PAGE)
    call("munmap", address + 4 * PMD, 20 * PAGE)
    call("mprotect", address + 6 * PMD, PMD // 2, PROT_NONE)


def mthp() -> None:
    """Anonymous folios of the sizes that are switched on; memory too small for a PMD-mapped THP."""
    for number in range(8):
        address = map_aligned(MIB, PMD)
        call("madvise", address, MIB, mmap.MADV_HUGEPAGE)
        write(address, MIB)
        if number % 2:
            call("madvise", address + 3 * PAGE, PAGE, mmap.MADV_DONTNEED)
            call("munmap", address + 50 * PAGE, 5 * PAGE)


def fork() -> None:
    """Memory shared with children by copy-on-write: exits before, beside and after the parent's."""
    address = map_memory(8 * MIB)
    write(address, 8 * MIB)

    def child() -> None:
        write(address, 2 * MIB)
        forked(lambda: write(address + 2 * MIB, MIB))
        os.wait()

    forked(child)
    os.wait()
    forked(lambda: time.sleep(0.2))
    write(address + 4 * MIB, MIB)


def fork_thp() -> None:
    """THPs shared with a child."""
    address = map_aligned(4 * PMD)
    call("madvise", address, 4 * PMD, mmap.MADV_HUGEPAGE)
    write(address, 4 * PMD)
    forked(lambda: write(address, 2 * PMD, 5 * PAGE))
    os.wait()
    forked(lambda: time.sleep(0.2))
    write(address + 2 * PMD, PMD, 9 * PAGE)


def shared_memory() -> None:
    """Shared anonymous memory, mapped twice and by a child."""
    address = map_memory(4 * MIB, SHARED)
    write(address, 3 * MIB)
    forked(lambda: write(address + 2 * MIB, 2 * MIB))
    os.wait()
    fd = os.memfd_create("replay")
    os.ftruncate(fd, 2 * MIB)
    for _ in range(2):
        write(map_memory(2 * MIB, mmap.MAP_SHARED, fd), 2 * MIB, 2 * PAGE)


def files() -> None:
    """Files: private with copied pages, shared with dirty ones; one is deleted while it is mapped."""
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * (4 * MIB))
        file.flush()
        private = map_memory(4 * MIB, mmap.MAP_PRIVATE, file.fileno())
        shared = map_memory(4 * MIB, mmap.MAP_SHARED, file.fileno())
    read(private, 4 * MIB)
    write(private, 4 * MIB, 3 * PAGE)
    read(shared, 2 * MIB)
    write(shared + MIB, 2 * MIB, 2 * PAGE)


def swap() -> None:
    """Swapped out, and some of it read back."""
    address = map_memory(8 * MIB)
    write(address, 8 * MIB)
    call("madvise", address, 4 * MIB, MADV_PAGEOUT)
    read(address + MIB, 2 * MIB, 2 * PAGE)
    write(address + 3 * MIB, MIB, 3 * PAGE)


def swap_fork() -> None:
    """Swapped out, and read back by a child only: the swap entries are still the parent's."""
    address = map_memory(2 * MIB)
    write(address, 2 * MIB)
    call("madvise", address, 2 * MIB, MADV_PAGEOUT)
    forked(lambda: read(address, 2 * MIB, 2 * PAGE))
    os.wait()


def mremap() -> None:
    """Memory whose order in the address space is not that in which it was written."""
    address = map_memory(8 * MIB)
    write(address, 8 * MIB)
    place = map_memory(8 * MIB, protection=PROT_NONE)
    for number in range(16):
        piece = MIB // 4
        call(
            "mremap",
            address + number * piece,
            piece,
            piece,
            MREMAP_MAYMOVE | MREMAP_FIXED,
            place + (31 - number) * piece,
        )


def mlock() -> None:
    """Locked memory."""
    address = map_memory(2 * MIB)
    write(address, 2 * MIB)
    call("mlock", address, MIB)


def pinned() -> None:
    """Pages that a pipe holds too: it is closed after the memory is gone."""
    address = map_memory(64 * PAGE)
    write(address, 64 * PAGE)
    _, pipe = os.pipe()
    for number in range(8):
        piece = (ctypes.c_size_t * 2)(address + number * 3 * PAGE, PAGE)
        call("vmsplice", pipe, ctypes.addressof(piece), 1, 0)


def threads() -> None:
    """Several threads, each with a stack and an arena of its own, alive at the exit."""
    held = []

    def work() -> None:
        held.append(bytearray(3 * MIB))
        time.sleep(60)

    for _ in range(6):
        threading.Thread(target=work, daemon=True).start()
    while len(held) < 6:
        time.sleep(0.01)


def numpy() -> None:
    """NumPy with arrays of several sizes."""
    import numpy as np

    held = [np.ones(size) for size in (100, 10_000, 1_000_000)]
    held.append(held[2] @ held[2] * np.arange(500_000))
    globals()["held"] = held


PROGRAMS: Final = {
    program.__name__: program
    for program in (
        ordinary,
        holes,
        thp_pmd,
        thp_pte,
        mthp,
        fork,
        fork_thp,
        shared_memory,
        files,
        swap,
        swap_fork,
        mremap,
        mlock,
        pinned,
        threads,
        numpy,
    )
}


if __name__ == "__main__":
    PROGRAMS[sys.argv[1]]()
    os._exit(0)
