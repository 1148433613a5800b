# SPDX-License-Identifier: Apache-2.0
"""Small address spaces read at once, so that their processes can go on before anything is made of them.

`read` takes what the kernel says as it is, in a millisecond or two; `build` makes extents of many such
snapshots together, elsewhere and later: most of them have few pages, and a call of NumPy costs the same for
few as for many.
"""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from replay.capture import extents as ex
from replay.capture import folios, pmd_mappings, runs
from replay.capture.address_space import BLOCK_PAGES
from replay.capture.cut import rows_of
from replay.capture.extents import Extents, Ranges
from replay.capture.folios import Pages
from replay.capture.rss import by_owner, unaccounted
from replay.errors import ProcessGoneError
from replay.procfs import files, pagemap_scan
from replay.procfs.files import PM_EXCLUSIVE, U64, Status, Vma
from replay.procfs.pagemap_words import read_pieces
from replay.procfs.source import Tree
from replay.trace.schema import ptes_per_table

I64 = npt.NDArray[np.int64]

NUMBER_BITS: Final = 52
"""Bits of a page or frame number. In arrays of several address spaces the bits above tell them apart."""

MOST_SNAPSHOTS: Final = 1 << 63 - NUMBER_BITS
"""Snapshots that can be told apart by them."""


Area = tuple[int, int, str, str]
"""A VMA in smaps: first page, page behind it, rest of its first line, VmFlags. NamedTuples pickle slowly."""


@dataclass(frozen=True)
class Snapshot:
    """What the kernel said of one address space, but for the words of pagemap and of the kpage files.

    These lie in one array, one after the other: pagemap, kpageflags, kpagecount and, with `has_memcg`,
    kpagecgroup. first, size: pages of each span of pagemap words. start, end: frames of each piece of the
    others. huge: (first page, end page) of regions mapped by a PMD. changed: pagemap words that a second look
    found changed. held_ms: milliseconds that all this took. ended_by: `exit` or `exec`.
    """

    pid: int
    status: Status
    areas: list[Area]
    huge: tuple[I64, I64]
    first: I64
    size: I64
    start: I64
    end: I64
    changed: int
    has_memcg: bool
    command_line: str
    held_ms: float
    ended_by: str = "exit"

    @property
    def pages(self) -> int:
        """Pagemap words."""
        return int(self.size.sum())

    @property
    def frames(self) -> int:
        """Words of kpageflags, of kpagecount, and of kpagecgroup."""
        return int((self.end - self.start).sum())

    @property
    def words(self) -> int:
        """All words."""
        return self.pages + (2 + self.has_memcg) * self.frames


def read(
    tree: Tree, pid: int, room: U64, meanwhile: Callable[[], None], ended_by: str = "exit"
) -> Snapshot | None:
    """Read the address space of a process that stands at its exit, or waits inside execve, by `ended_by`.

    PAGEMAP_SCAN must be supported. The words go to the beginning of `room`; None if they do not fit.
    meanwhile: called from time to time. Raises `ProcessGoneError` if the process has ended.
    """
    began = time.monotonic()
    root, page_size = tree.root, tree.page_size
    status = files.read_status(root, pid, page_size)
    smaps = files.read_text(root, pid, "smaps")
    meanwhile()
    areas = list(_areas(smaps, page_size))
    places = [(first, end) for first, end, _, _ in areas]
    # VmFlags are two letters and a space each
    maps_frames = [(first, end) for first, end, _, flags in areas if "pf " in flags]
    if not places:
        raise ProcessGoneError(f"process {pid} has ended: it has no memory left")
    fd = files.open_pagemap(root, pid)
    try:
        begin, end, by_pmd = pagemap_scan.scanned(fd, places, page_size, pid)
        huge = begin[by_pmd], end[by_pmd]
        # PAGEMAP_SCAN leaves VM_PFNMAP mappings out
        if maps_frames:
            begin = np.sort(np.append(begin, [start for start, _ in maps_frames]))
            end = np.sort(np.append(end, [stop for _, stop in maps_frames]))
        first, stop = pagemap_scan.spans(begin, end, np.array([start for start, _ in places]), BLOCK_PAGES)
        count = int((stop - first).sum())
        if count > len(room):
            return None
        words = room[:count]
        _read_spans(fd, pid, first, stop, words)
        meanwhile()
        present = words[words & files.PM_PRESENT != 0]
        frame = np.sort((present & files.PM_PFRAME).view(np.int64))
        sizes = np.ones(len(frame), np.int32)
        pages = folios.read(tree.flags_fd, tree.counts_fd, tree.memcg_fd, frame, sizes, None)
        meanwhile()
        again = np.empty_like(words)
        _read_spans(fd, pid, first, stop, again)
    finally:
        os.close(fd)
    found = (pages.flags, pages.counts.view(np.uint64), pages.memcg.view(np.uint64))
    if count + sum(map(len, found)) > len(room):
        return None
    at = count
    for part in found:
        room[at : at + len(part)] = part
        at += len(part)
    changed = int(np.count_nonzero((words ^ again) | files.PM_MOVING != files.PM_MOVING))
    return Snapshot(
        pid=pid,
        status=status,
        areas=areas,
        huge=huge,
        first=first,
        size=stop - first,
        start=pages.start,
        end=pages.end,
        changed=changed,
        has_memcg=len(pages.memcg) > 0,
        command_line=files.command_line(root, pid),
        held_ms=(time.monotonic() - began) * 1000,
        ended_by=ended_by,
    )


def _read_spans(fd: int, pid: int, first: I64, stop: I64, words: U64) -> None:
    """Pagemap words of the spans [first, stop), one after the other."""
    missing = read_pieces(fd, first, stop - first, words.view(np.int64))
    files.check_read(missing >= 0, fd)
    if missing:
        raise ProcessGoneError(f"process {pid} ended while it was read")


_AREA: Final = re.compile(r"\nVmFlags: (.*)\n(?:([0-9a-f]+)-([0-9a-f]+) (.*))?")
"""In smaps: what stands last of a VMA, and the first line of the next one.

Parsing all lines would take longer than all else.
"""
_FIRST: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (.*)")


def _areas(smaps: str, page_size: int) -> Iterator[Area]:
    """The VMAs that smaps lists, without vsyscall."""
    header = _FIRST.match(smaps)
    if not header:
        return
    first, end, rest = header.groups()
    for flags, next_first, next_end, next_rest in _AREA.findall(smaps):
        if (start := int(first, 16)) < 1 << 63:
            yield start // page_size, int(end, 16) // page_size, rest, flags
        first, end, rest = next_first, next_end, next_rest


def _vmas(areas: Sequence[Area], page_size: int) -> list[Vma]:
    """The VMAs but for their totals."""
    return [
        Vma(first, end - first, *_described(rest, flags), page_size, 0, 0, 0, 0, 0)
        for first, end, rest, flags in areas
    ]


@functools.lru_cache(maxsize=1 << 12)
def _described(rest: str, flags: str) -> tuple[str, str, str, int]:
    """Permissions, flags, name and inode of a VMA. Processes of one program have the same, elsewhere.

    rest: of the first line in smaps, behind the addresses; flags: VmFlags.
    """
    # at most 4 splits: names may hold spaces
    perms, _offset, _device, inode, *name = rest.split(None, 4)
    return perms, flags.strip(), name[0] if name else "", int(inode)


def build(
    snapshots: Sequence[Snapshot], words: Sequence[U64], page_size: int, precise: bool
) -> tuple[Extents, list[list[Vma]], int, list[dict[str, int]]]:
    """The extents of snapshots, the VMAs of each, how many entries or pages changed, and what is unaccounted.

    changed: while they were read. unaccounted: of each snapshot, see `metadata.AddressSpace`. words: of each
    snapshot. In the extents, `vma` counts through the VMAs of all. precise: whether kpagecount counts each
    page. At most `MOST_SNAPSHOTS`.
    """
    vmas = [_vmas(snapshot.areas, page_size) for snapshot in snapshots]
    flat = [vma for of_space in vmas for vma in of_space]
    # of each space, what stands above its page and frame numbers
    above = np.arange(len(snapshots)) << NUMBER_BITS
    above_vma = np.repeat(above, [len(of_space) for of_space in vmas])

    def joined(parts: Sequence[I64]) -> I64:
        return np.concatenate(parts) + np.repeat(above, [len(part) for part in parts])

    found = runs.runs_of(
        joined([snapshot.first for snapshot in snapshots]),
        np.concatenate([snapshot.size for snapshot in snapshots]),
        np.concatenate([part[: snapshot.pages] for snapshot, part in zip(snapshots, words, strict=True)]),
        np.array([vma.start for vma in flat]) + above_vma,
    )
    pages = _joined_pages(snapshots, words, joined)
    frame = found.frame + above_vma[found.vma]
    facts = ex.vma_facts(flat)
    again = ex.maybe_mapped_again(found, facts, ptes_per_table(page_size), precise)
    several = Ranges(*runs.cover(frame[again], frame[again] + found.pages[again], least=2))
    own = ex.own_of_frames(pages, several)
    begin, end = (joined([snapshot.huge[side] for snapshot in snapshots]) for side in (0, 1))
    # not `runs.by_frame`: below the number of the space and the frame there is no room for that of the run
    present = np.flatnonzero(found.present)
    order = present[np.argsort(frame[present])]
    index = folios.places_of(pages, frame[order], order, len(found.vpn))
    changed = sum(snapshot.changed for snapshot in snapshots)
    changed += ex.raise_counts(found, index, pages, own, precise)
    whole = folios.folios_of(pages)
    if not precise:
        # all runs, as none is trusted to be exclusive
        exclusive = found.word[again] & PM_EXCLUSIVE != 0
        ex.count_exclusive(pages, whole, ex.entries_of(frame[again], found.pages[again], exclusive))
    huge = pmd_mappings.still_whole(
        Ranges(begin, end, np.ones_like(begin)), [found], ptes_per_table(page_size)
    )
    rows, torn = rows_of(found, index, pages, whole, facts, own, huge, None, page_size)
    owner = np.repeat(np.arange(len(snapshots)), [len(of_space) for of_space in vmas])
    more = [
        unaccounted(totals, snapshot.status)
        for totals, snapshot in zip(by_owner(rows, owner, len(snapshots)), snapshots, strict=True)
    ]
    return rows._replace(vpn=rows.vpn - above_vma[rows.vma]), vmas, changed + torn, more


def _joined_pages(
    snapshots: Sequence[Snapshot], words: Sequence[U64], joined: Callable[[Sequence[I64]], I64]
) -> Pages:
    start = joined([snapshot.start for snapshot in snapshots])
    end = joined([snapshot.end for snapshot in snapshots])
    offset = np.cumsum(end - start) - (end - start)

    def column(number: int) -> U64:
        parts = []
        for snapshot, part in zip(snapshots, words, strict=True):
            begin = snapshot.pages + number * snapshot.frames
            parts.append(part[begin : begin + snapshot.frames])
        return np.concatenate(parts)

    has_memcg = all(snapshot.has_memcg for snapshot in snapshots)
    memcg = column(2) if has_memcg else np.zeros(0, np.uint64)
    return Pages(start, end, offset, column(0), column(1).view(np.int64), memcg.view(np.int64))
