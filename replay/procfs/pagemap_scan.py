# SPDX-License-Identifier: Apache-2.0
"""Which parts of an address space are populated, and which of them are mapped by a PMD.

`PAGEMAP_SCAN` (Linux kernel commit 52526ca7fdb9 "fs/proc/task_mmu: implement IOCTL to get and optionally
clear info about PTEs" (in v6.7)) answers both without a look at empty reservations. Where it is missing,
VMAs are read whole, but for huge ones of which smaps says that nothing is resident; a saved tree is read
where its sparse file has data.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from replay.errors import ProcessGoneError, ReplayError
from replay.jit.compiled import I64, compiled
from replay.procfs import files
from replay.procfs.files import Vma

Bools = npt.NDArray[np.bool_]

PAGE_IS_PRESENT: Final = 1 << 3
PAGE_IS_SWAPPED: Final = 1 << 4
PAGE_IS_HUGE: Final = 1 << 6
"""Categories of include/uapi/linux/fs.h; PAGE_IS_HUGE: mapped by a PMD, or hugetlb."""

REGION: Final = np.dtype([("start", "<u8"), ("end", "<u8"), ("categories", "<u8")])
"""struct page_region: addresses in bytes, of user space, so that they fit int64."""

FEW_REGIONS: Final = 1 << 9
MANY_REGIONS: Final = 1 << 15
"""Regions of the first call, and of each further one."""

EMPTY_VMA_PAGES: Final = 4 << 20
"""Without PAGEMAP_SCAN, VMAs above this size are skipped if smaps says that nothing is resident.

Smaller ones take milliseconds to read, and zero pages, which smaps does not count, are found in them.
"""

BRIDGE_PAGES: Final = 256
"""Holes up to this size are read through: cheaper than another system call."""


_PM_SCAN_ARG: Final = (
    *("size", "flags", "start", "end", "walk_end", "vec", "vec_len", "max_pages"),
    *("category_inverted", "category_mask", "category_anyof_mask", "return_mask"),
)


class _PmScanArg(ctypes.Structure):
    """struct pm_scan_arg."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in _PM_SCAN_ARG)


_PAGEMAP_SCAN: Final = 3 << 30 | ctypes.sizeof(_PmScanArg) << 16 | ord("f") << 8 | 16
"""_IOWR('f', 16, struct pm_scan_arg)."""


def _scan(fd: int, start: int, end: int, most: int) -> tuple[npt.NDArray[np.void], int]:
    """One call: up to `most` populated regions of addresses [start, end), and the address to go on from."""
    regions = np.empty(most, REGION)
    arg = _PmScanArg(
        size=ctypes.sizeof(_PmScanArg),
        start=start,
        end=end,
        vec=regions.ctypes.data,
        vec_len=len(regions),
        category_anyof_mask=PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        return_mask=PAGE_IS_HUGE,
    )
    count = fcntl.ioctl(fd, _PAGEMAP_SCAN, arg)
    # walk_end tells where to go on if regions were many; else it may be left from inside the walk: the kernel
    # collects 512 regions at a time, and sets it where these were full (do_pagemap_scan(), seen on v6.18)
    return regions[:count], arg.walk_end if count == len(regions) else end


@functools.cache
def supported() -> bool:
    """Whether this kernel has PAGEMAP_SCAN with the categories used here; tried on the caller itself."""
    try:
        fd = os.open(files.PROC / "self" / "pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        _scan(fd, 0, 1 << 20, FEW_REGIONS)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def scanned(fd: int, places: Sequence[tuple[int, int]], page_size: int, pid: int) -> tuple[I64, I64, Bools]:
    """Populated regions by PAGEMAP_SCAN: (first page, end page, mapped by a PMD), in address order.

    places: the VMAs. The ioctl leaves VM_PFNMAP mappings out (pagemap_scan_test_walk()).
    """
    begin, end = (places[0][0], places[-1][1]) if places else (0, 0)
    start, stop, categories = regions(fd, begin * page_size, end * page_size, pid).T
    return start // page_size, stop // page_size, categories & PAGE_IS_HUGE != 0


def regions(fd: int, position: int, end: int, pid: int) -> I64:
    """Populated regions of addresses [position, end) by PAGEMAP_SCAN: rows of `REGION`, as int64."""
    parts: list[npt.NDArray[np.void]] = []
    while position < end:
        try:
            most = MANY_REGIONS if parts else FEW_REGIONS
            found, position = _scan(fd, position, end, most)
        except OSError as error:
            if error.errno == errno.ESRCH:
                raise ProcessGoneError(f"process {pid} ended while it was read") from None
            raise ReplayError(
                f"PAGEMAP_SCAN of process {pid} failed ({error.strerror}): use --no-pagemap-scan"
            ) from None
        parts.append(found)
    if len(parts) != 1:
        parts = [np.concatenate([np.empty(0, REGION), *parts])]
    return parts[0].view(np.int64).reshape(-1, 3)


def unscanned(vmas: Sequence[Vma]) -> tuple[I64, I64]:
    """VMAs to read without PAGEMAP_SCAN: (first page, end page) of all but huge empty ones."""
    kept = [v for v in vmas if v.pages <= EMPTY_VMA_PAGES or v.rss + v.swap + v.hugetlb]
    return np.array([v.start for v in kept], np.int64), np.array([v.end for v in kept], np.int64)


def data_extents(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Parts of words [start, end) of a saved, sparse file that hold data."""
    position = start * 8
    while position < end * 8:
        try:
            data = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data up to the end
                return
            raise
        if data >= end * 8:
            return
        hole = min(os.lseek(fd, data, os.SEEK_HOLE), end * 8)
        yield max(data // 8, start), -(-hole // 8)
        position = hole


def spans(starts: I64, ends: I64, borders: I64, block_pages: int) -> tuple[I64, I64]:
    """Join regions over small holes inside a VMA, then cut at multiples of `block_pages`.

    starts, ends: int64, shape (n,), sorted, in pages. borders: where VMAs start. Returns the same, each
    within one block.
    """
    if not len(starts):
        return starts, ends
    # a span of n pages lies in at most n / block_pages + 2 blocks
    pages = int((ends - starts).sum()) + BRIDGE_PAGES * len(starts)
    first, stop = np.empty((2, pages // block_pages + 2 * len(starts)), np.int64)
    starts, ends = np.ascontiguousarray(starts), np.ascontiguousarray(ends)
    found = _join_and_cut(starts, ends, borders, block_pages, first, stop)
    return first[:found], stop[:found]


@compiled
def _join_and_cut(starts: I64, ends: I64, borders: I64, block_pages: int, first: I64, stop: I64) -> int:
    """Fill in the spans; returns how many there are."""
    found = border = 0
    begin = starts[0]
    for region in range(len(starts)):
        end = ends[region]
        if region + 1 < len(starts):
            following = starts[region + 1]
            while border < len(borders) and borders[border] < end:
                border += 1
            apart = border < len(borders) and borders[border] <= following
            if not apart and following - end <= BRIDGE_PAGES:
                continue
        while begin < end:
            first[found] = begin
            begin = min((begin // block_pages + 1) * block_pages, end)
            stop[found] = begin
            found += 1
        if region + 1 < len(starts):
            begin = starts[region + 1]
    return found


def saved_huge(text: str, page_size: int) -> tuple[I64, I64]:
    """(first page, end page) of the `huge` ranges of a saved `pagemap_scan` file.

    One range a line: `start-end category ...`, addresses in hexadecimal.
    """
    ranges = [
        [int(address, 16) // page_size for address in words[0].split("-")]
        for words in map(str.split, text.splitlines())
        if "huge" in words[1:]
    ]
    table = np.array(ranges, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]
