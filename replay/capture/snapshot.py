"""A small address space read at once, so that its process can go on before anything is made of it.

`read` takes what the kernel says as it is, in a millisecond or two; `build` makes extents of it, elsewhere
and later.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from replay.capture import extents as ex
from replay.capture import folios, procfs, runs, scan
from replay.capture.extents import Extents, Ranges
from replay.capture.folios import Pages
from replay.capture.procfs import U64, Status, Vma
from replay.errors import ProcessGoneError
from replay.trace.schema import ptes_per_table

I64 = npt.NDArray[np.int64]

BLOCK_PAGES: Final = 1 << 18
"""Words of one span: no page-table page and no huge page of hugetlb (at most 1 GiB) spans two."""

MOST_PAGES: Final = 1 << 20
"""Pagemap words up to which an address space is read at once."""


class Inline(Executor):
    """Runs what is submitted at once: for short reads threads cost more than they save."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


INLINE: Final = Inline()


@dataclass(frozen=True)
class Snapshot:
    """What the kernel said of one address space.

    first, size: pages of each span of `words`, which holds their pagemap words one after the other.
    huge: (first page, end page) of regions mapped by a PMD. changed: words that a second look found changed.
    """

    pid: int
    status: Status
    smaps: str
    huge: tuple[I64, I64]
    first: I64
    size: I64
    words: U64
    pages: Pages
    changed: int


def read(root: Path, pid: int, flags_fd: int, counts_fd: int, page_size: int) -> Snapshot | None:
    """Read the address space of a process that stands at its exit; PAGEMAP_SCAN must be supported.

    None if it is too large for that. Raises `ProcessGoneError` if it has ended.
    """
    status = procfs.read_status(root, pid, page_size)
    smaps = procfs.read_text(root, pid, "smaps")
    vmas = _vmas(smaps, page_size)
    if not vmas:
        raise ProcessGoneError(f"process {pid} has ended: it has no memory left")
    places = [(vma.start, vma.end) for vma in vmas]
    fd = procfs.open_pagemap(root, pid)
    try:
        begin, end, by_pmd = scan.scanned(fd, places, page_size, pid)
        huge = begin[by_pmd], end[by_pmd]
        # PAGEMAP_SCAN leaves VM_PFNMAP mappings out
        frames = [place for place, vma in zip(places, vmas, strict=True) if vma.has("pf")]
        begin = np.sort(np.r_[begin, [start for start, _ in frames]]).astype(np.int64)
        end = np.sort(np.r_[end, [stop for _, stop in frames]]).astype(np.int64)
        first, stop = scan.spans(begin, end, np.array([start for start, _ in places]), BLOCK_PAGES)
        if int((stop - first).sum()) > MOST_PAGES:
            return None
        words = _words(fd, pid, first, stop)
        present = words[words & procfs.PM_PRESENT != 0]
        frame = np.sort((present & procfs.PM_PFRAME).view(np.int64))
        pages = folios.read(flags_fd, counts_fd, frame, np.ones(len(frame), np.int32), INLINE)
        again = _words(fd, pid, first, stop)
    finally:
        os.close(fd)
    # other processes and their exits make PM_EXCLUSIVE change
    changed = int(np.count_nonzero((words ^ again) & ~(procfs.PM_EXCLUSIVE | procfs.PM_SOFT_DIRTY)))
    return Snapshot(pid, status, smaps, huge, first, stop - first, words, pages, changed)


def _words(fd: int, pid: int, first: I64, stop: I64) -> U64:
    """Pagemap words of the spans [first, stop), one after the other."""
    size = stop - first
    words = np.empty(int(size.sum()), np.uint64)
    offset = 0
    for start, count in zip(first.tolist(), size.tolist(), strict=True):
        if procfs.read_words(fd, start, words[offset : offset + count]) < count:
            raise ProcessGoneError(f"process {pid} ended while it was read")
        offset += count
    return words


def _vmas(smaps: str, page_size: int) -> list[Vma]:
    """The VMAs but for their totals, without vsyscall; parsing all lines would take longer than all else."""
    header, *rest = smaps.split("\nVmFlags: ")
    vmas = []
    for part in rest:
        flags, _, following = part.partition("\n")
        place, perms, _offset, _device, inode, *name = header.partition("\n")[0].split(None, 5)
        first, last = (int(address, 16) // page_size for address in place.split("-"))
        if first * page_size < 1 << 63:
            vmas.append(
                Vma(
                    start=first,
                    pages=last - first,
                    perms=perms,
                    flags=flags.strip(),
                    name=name[0] if name else "",
                    inode=int(inode),
                    page_size=page_size,
                    rss=0,
                    anonymous=0,
                    swap=0,
                    pmd_mapped=0,
                    hugetlb=0,
                )
            )
        header = following
    return vmas


def build(snapshot: Snapshot, page_size: int, precise: bool) -> tuple[Extents, Sequence[Vma], int]:
    """The extents of a snapshot, its VMAs, and how many entries or pages changed while they were read.

    precise: whether kpagecount counts each page.
    """
    vmas = _vmas(snapshot.smaps, page_size)
    starts = np.array([vma.start for vma in vmas])
    offsets = np.cumsum(snapshot.size) - snapshot.size
    spans = zip(snapshot.first.tolist(), offsets.tolist(), snapshot.size.tolist(), strict=True)
    found = runs.concat(
        [runs.runs_of(first, snapshot.words[at : at + size], starts) for first, at, size in spans]
    )
    facts = ex.vma_facts(vmas)
    some = found.select(ex.maybe_mapped_again(found, facts, ptes_per_table(page_size), precise))
    own = Ranges(*runs.cover(some.frame, some.frame + some.pages, least=2))
    huge = Ranges(*snapshot.huge, np.ones_like(snapshot.huge[0]))
    index = np.full(len(found.vpn), -1)
    index[found.present] = snapshot.pages.places(found.frame[found.present])
    changed = snapshot.changed + ex.raise_counts([found], [index], snapshot.pages, own, precise)
    whole = folios.folios_of(snapshot.pages)
    rows, torn = ex.build(found, index, snapshot.pages, whole, facts, own, huge, None, page_size)
    return rows, vmas, changed + torn
