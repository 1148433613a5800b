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
from typing import Final, NamedTuple

import numpy as np

from replay.capture import extents as ex
from replay.capture import folios, pmd_mappings, runs
from replay.capture.cut import rows_of
from replay.capture.extents import Extents, Ranges
from replay.capture.folios import BRIDGE_FRAMES, HEAD, IDLE, NO_ROOM, TAIL, Pages, read_flags, read_heads
from replay.capture.rss import by_owner, unaccounted
from replay.errors import ProcessGoneError
from replay.jit.compiled import I64, I64s, compiled, inline
from replay.jit.pread import pread
from replay.procfs import files, pagemap_scan
from replay.procfs.files import PM_EXCLUSIVE, PM_MOVING, PM_PFRAME, U64, Status, Vma
from replay.procfs.pagemap_scan import BRIDGE_PAGES, PAGE_IS_HUGE
from replay.procfs.pagemap_words import MOST_WORDS, read_pieces
from replay.procfs.source import Tree
from replay.trace.schema import ptes_per_table

NUMBER_BITS: Final = 52
"""Bits of a page or frame number. In arrays of several address spaces the bits above tell them apart."""

MOST_SNAPSHOTS: Final = 1 << 63 - NUMBER_BITS
"""Snapshots that can be told apart by them."""

MOST_PAGES: Final = (1 << 19) - 1
"""Pages of one snapshot."""


@dataclass(frozen=True)
class Snapshot:
    """What the kernel said of one address space, but for what it said in numbers.

    Those lie in one array, one after the other: words of pagemap, kpageflags, kpagecount and, with
    `has_memcg`, kpagecgroup; then first pages and sizes of the spans of pagemap words, first frames and ends
    of the pieces of the others, first pages and ends of regions mapped by a PMD. pages: pagemap words.
    frames: words of kpageflags, of kpagecount, and of kpagecgroup. changed: pagemap words that a second look
    found changed. held_ms: milliseconds that all this took. ended_by: `exit` or `exec`.
    """

    pid: int
    status: Status
    smaps: str
    pages: int
    frames: int
    spans: int
    pieces: int
    huge: int
    changed: int
    has_memcg: bool
    command_line: str
    held_ms: float
    ended_by: str = "exit"

    @property
    def words(self) -> int:
        """All numbers."""
        return self._before_places + 2 * (self.spans + self.pieces + self.huge)

    @property
    def _before_places(self) -> int:
        return self.pages + (2 + self.has_memcg) * self.frames


class _Places(NamedTuple):
    """Where the words of a snapshot were read, and what a PMD maps."""

    first: I64
    size: I64
    start: I64
    end: I64
    huge_first: I64
    huge_end: I64


def _places(snapshot: Snapshot, words: U64) -> _Places:
    parts, at = [], snapshot._before_places
    numbers = words.view(np.int64)
    for size in (snapshot.spans, snapshot.pieces, snapshot.huge):
        parts += [numbers[at : at + size], numbers[at + size : at + 2 * size]]
        at += 2 * size
    return _Places(*parts)


def read(
    tree: Tree, pid: int, room: U64, meanwhile: Callable[[], None], ended_by: str = "exit"
) -> Snapshot | None:
    """Read the address space of a process that stands at its exit, or waits inside execve, by `ended_by`.

    PAGEMAP_SCAN must be supported. The numbers go to the beginning of `room`; None if they do not fit.
    meanwhile: called from time to time. Raises `ProcessGoneError` if the process has ended.
    """
    began = time.monotonic()
    root, page_size = tree.root, tree.page_size
    status = files.read_status(root, pid, page_size)
    smaps = files.read_text(root, pid, "smaps")
    meanwhile()
    begin, end = _bounds(smaps)
    if begin == end:
        raise ProcessGoneError(f"process {pid} has ended: it has no memory left")
    sizes, out = np.zeros(len(_SIZES), np.int64), room.view(np.int64)
    fd = files.open_pagemap(root, pid)
    try:
        regions = pagemap_scan.regions(fd, begin, end, pid)
        raw = np.array(list(_raw_frames(smaps)), np.int64).reshape(-1, 2)
        spans, huge = np.empty((2, 2, len(regions) + len(raw)), np.int64)
        # from 4 MiB on numpy would ask the kernel for huge pages each time
        frames = np.empty(min(len(room), MOST_PAGES), np.int64)
        trusted = int(tree.mapcounts == "precise")
        missing = _read_entries(fd, regions, raw, page_size, trusted, sizes, spans, huge, out, frames)
        count, wanted = int(sizes[PAGES]), int(sizes[WANTED])
        if count > len(frames):
            return None
        _check_whole(missing, fd, pid)
        meanwhile()
        frames[:wanted].sort()
        pieces = np.empty((4, max(wanted, 1)), np.int64)
        failed = _read_frames(
            tree.flags_fd, tree.counts_fd, tree.memcg_fd, frames[:wanted], pieces, sizes, out[count:]
        )
        if failed == NO_ROOM:
            return None
        files.check_read(not failed, (tree.flags_fd, tree.counts_fd, tree.memcg_fd)[failed - 1])
        meanwhile()
        # the frames are read: there is room for a second look
        first, size = spans[:, : sizes[SPANS]]
        changed = _look_again(fd, first, size, out[:count], frames[:count], sizes)
        _check_whole(int(sizes[MISSING]), fd, pid)
    finally:
        os.close(fd)
    taken = Snapshot(
        pid=pid,
        status=status,
        smaps=smaps,
        pages=count,
        frames=int(sizes[FRAMES]),
        spans=len(first),
        pieces=int(sizes[PIECES]),
        huge=int(sizes[HUGE]),
        changed=changed,
        has_memcg=tree.memcg_fd >= 0,
        command_line=files.command_line(root, pid),
        held_ms=(time.monotonic() - began) * 1000,
        ended_by=ended_by,
    )
    if taken.words > len(room):
        return None
    places = (*spans[:, : taken.spans], *pieces[2:, : taken.pieces], *huge[:, : taken.huge])
    np.concatenate(places, out=out[taken._before_places : taken.words])
    return taken


def _check_whole(missing: int, fd: int, pid: int) -> None:
    """Raise unless all words of pagemap were read; missing: as `read_pieces` says."""
    files.check_read(missing >= 0, fd)
    if missing:
        raise ProcessGoneError(f"process {pid} ended while it was read")


_VM_FLAGS: Final = "\nVmFlags: "
"""Begins the last line of a VMA in smaps."""


def _bounds(smaps: str) -> tuple[int, int]:
    """The addresses from the first VMA to the end of the last, without vsyscall; two equal ones of none."""
    begin = int(smaps[: smaps.index("-")], 16) if smaps else 0
    if not smaps or begin >= 1 << 63:
        return begin, begin
    at = smaps.rfind(_VM_FLAGS)
    first, end = _addresses(smaps, at)
    while first >= 1 << 63:
        at = smaps.rfind(_VM_FLAGS, 0, at)
        first, end = _addresses(smaps, at)
    return begin, end


def _raw_frames(smaps: str) -> Iterator[tuple[int, int]]:
    """The addresses of VM_PFNMAP mappings, which PAGEMAP_SCAN leaves out."""
    at = smaps.find(_PFNMAP)
    while at >= 0:
        line = smaps.rfind("\n", 0, at)
        # or it is the name of a file
        if line >= 0 and smaps.startswith(_VM_FLAGS, line):
            first, end = _addresses(smaps, line)
            if first < 1 << 63:
                yield first, end
        at = smaps.find(_PFNMAP, at + 1)


_PFNMAP: Final = " pf "
"""In VmFlags, which are two letters and a space each."""


def _addresses(smaps: str, flags: int) -> tuple[int, int]:
    """The addresses of the VMA whose VmFlags stand at `flags`."""
    before = smaps.rfind(_VM_FLAGS, 0, flags)
    begin = smaps.index("\n", before + 1) + 1 if before >= 0 else 0
    first, _, end = smaps[begin : smaps.index(" ", begin)].partition("-")
    return int(first, 16), int(end, 16)


_SIZES: Final = range(7)
PAGES, WANTED, SPANS, HUGE, FRAMES, PIECES, MISSING = _SIZES
"""Places in the sizes that the loops below fill in. WANTED: frames that are mapped."""


@compiled
def _read_entries(
    fd: int,
    regions: I64s,
    raw: I64s,
    page_size: int,
    trusted: int,
    sizes: I64,
    spans: I64s,
    huge: I64s,
    words: I64,
    frames: I64,
) -> int:
    """Read the pagemap words of regions; returns how many are missing, as `read_pieces`.

    regions: of PAGEMAP_SCAN; raw: (first address, end) of further ones. trusted: whether PM_EXCLUSIVE tells
    what kpagecount says. frames: twice the frame of each present word, 1 more if kpagecount is to be asked.
    """
    pages = count = marked = at = other = 0
    for _ in range(regions.shape[0] + raw.shape[0]):
        is_raw = at == regions.shape[0] or (other < raw.shape[0] and raw[other, 0] < regions[at, 0])
        if is_raw:
            begin, end = raw[other, 0] // page_size, raw[other, 1] // page_size
            other += 1
        else:
            begin, end = regions[at, 0] // page_size, regions[at, 1] // page_size
            if regions[at, 2] & PAGE_IS_HUGE != 0:
                huge[0, marked], huge[1, marked] = begin, end
                marked += 1
            at += 1
        before = spans[0, count - 1] + spans[1, count - 1] if count > 0 else 0
        if count > 0 and begin - before <= BRIDGE_PAGES:
            spans[1, count - 1] += end - before
            pages += end - before
        else:
            spans[0, count], spans[1, count] = begin, end - begin
            pages += end - begin
            count += 1
    sizes[PAGES], sizes[SPANS], sizes[HUGE] = pages, count, marked
    if pages > len(frames):
        return 0
    missing = read_pieces(fd, spans[0][:count], spans[1][:count], words)
    wanted = 0
    for place in range(pages if missing == 0 else 0):
        word = words[place]
        # the highest bit: present
        if word < 0:
            is_known = trusted != 0 and word & PM_EXCLUSIVE != 0
            frames[wanted] = (word & PM_PFRAME) << 1 | int(not is_known)
            wanted += 1
    sizes[WANTED] = wanted
    return missing


@compiled
def _read_frames(
    flags_fd: int, counts_fd: int, memcg_fd: int, frames: I64, pieces: I64s, sizes: I64, out: I64
) -> int:
    """Read the flags, counts and memory cgroups of frames and of their folios.

    frames: of `_read_entries`, sorted. pieces: its last two rows become start and end of what was read.
    Returns 0, `NO_ROOM`, or 1, 2 or 3 for the file that could not be read.
    """
    wanted = 0
    for number in range(len(frames)):
        frame = frames[number] >> 1
        if wanted > 0 and frame - pieces[1, wanted - 1] <= BRIDGE_FRAMES:
            pieces[1, wanted - 1] = max(pieces[1, wanted - 1], frame + 1)
        else:
            pieces[0, wanted], pieces[1, wanted] = frame, frame + 1
            wanted += 1
    if wanted == 0:
        # rows of swap entries point to it
        pieces[0, 0], pieces[1, 0] = 0, 1
        wanted = 1
    found = read_flags(
        flags_fd, pieces[0][:wanted], pieces[1][:wanted], pieces[2][:wanted], pieces[3][:wanted], out
    )
    if found < 0:
        return NO_ROOM if found == NO_ROOM else 1
    words = 0
    for piece in range(found):
        pieces[0, piece] = pieces[3, piece] - pieces[2, piece]
        words += pieces[0, piece]
    sizes[FRAMES], sizes[PIECES] = words, found
    if (2 + int(memcg_fd >= 0)) * words > len(out):
        return NO_ROOM
    if not _read_counts(counts_fd, frames, pieces[2], pieces[0], found, words, out):
        return 2
    if memcg_fd >= 0:
        start, size = pieces[2][:found], pieces[0][:found]
        if read_heads(memcg_fd, start, size, out[:words], out[2 * words :]) < 0:
            return 3
    for place in range(words):
        out[place] &= ~IDLE
    return 0


@inline
def _read_counts(fd: int, frames: I64, start: I64, size: I64, pieces: int, words: int, out: I64) -> bool:
    """Read the counts of pieces to out[words:], but for those that are known; whether that worked.

    A frame of order 0 that is mapped once, here, has 1. One that is not mapped here is not looked at.
    """
    number = at = 0
    for piece in range(pieces):
        end = at + size[piece]
        for place in range(at, end):
            frame = start[piece] + place - at
            known, is_large = 0, out[place] & (HEAD | TAIL) != 0
            while number < len(frames) and frames[number] >> 1 == frame:
                known = 1 if known >= 0 and frames[number] & 1 == 0 else UNKNOWN
                number += 1
            out[words + place] = UNKNOWN if is_large else known
        place = at
        while place < end:
            if out[words + place] != UNKNOWN:
                place += 1
                continue
            stop = behind = place + 1
            while behind < end and behind - stop <= BRIDGE_FRAMES:
                behind += 1
                if out[words + behind - 1] == UNKNOWN:
                    stop = behind
            while place < stop:
                count = pread(
                    fd, out, words + place, min(stop - place, MOST_WORDS), start[piece] + place - at
                )
                if count < 0:
                    return False
                if count == 0:
                    out[words + place : words + stop] = 0
                    count = stop - place
                place += count
        at = end
    return True


UNKNOWN: Final = -1


@compiled
def _look_again(fd: int, first: I64, size: I64, words: I64, again: I64, sizes: I64) -> int:
    """Read pagemap words once more, into `again`; returns how many have changed."""
    sizes[MISSING] = read_pieces(fd, first, size, again)
    changed = 0
    for place in range(len(words)):
        changed += (words[place] ^ again[place]) & ~PM_MOVING != 0
    return changed


_AREA: Final = re.compile(r"\nVmFlags: (.*)\n(?:([0-9a-f]+)-([0-9a-f]+) (.*))?")
"""In smaps: what stands last of a VMA, and the first line of the next one.

Parsing all lines would take longer than all else.
"""
_FIRST: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (.*)")


def _vmas(smaps: str, page_size: int) -> list[Vma]:
    """The VMAs that smaps lists, but for their totals, without vsyscall."""
    found: list[Vma] = []
    header = _FIRST.match(smaps)
    if not header:
        return found
    first, end, rest = header.groups()
    for flags, next_first, next_end, next_rest in _AREA.findall(smaps):
        if (start := int(first, 16)) < 1 << 63:
            begin, pages = start // page_size, (int(end, 16) - start) // page_size
            found.append(Vma(begin, pages, *_described(rest, flags), page_size, 0, 0, 0, 0, 0))
        first, end, rest = next_first, next_end, next_rest
    return found


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
    vmas = [_vmas(snapshot.smaps, page_size) for snapshot in snapshots]
    places = [_places(snapshot, part) for snapshot, part in zip(snapshots, words, strict=True)]
    flat = [vma for of_space in vmas for vma in of_space]
    # of each space, what stands above its page and frame numbers
    above = np.arange(len(snapshots)) << NUMBER_BITS
    above_vma = np.repeat(above, [len(of_space) for of_space in vmas])

    def joined(parts: Sequence[I64]) -> I64:
        return np.concatenate(parts) + np.repeat(above, [len(part) for part in parts])

    found = runs.runs_of(
        joined([place.first for place in places]),
        np.concatenate([place.size for place in places]),
        np.concatenate([part[: snapshot.pages] for snapshot, part in zip(snapshots, words, strict=True)]),
        np.array([vma.start for vma in flat]) + above_vma,
    )
    pages = _joined_pages(snapshots, words, places, joined)
    frame = found.frame + above_vma[found.vma]
    facts = ex.vma_facts(flat)
    again = ex.maybe_mapped_again(found, facts, ptes_per_table(page_size), precise)
    several = Ranges(*runs.cover(frame[again], frame[again] + found.pages[again], least=2))
    own = ex.own_of_frames(pages, several)
    begin = joined([place.huge_first for place in places])
    end = joined([place.huge_end for place in places])
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
    snapshots: Sequence[Snapshot],
    words: Sequence[U64],
    places: Sequence[_Places],
    joined: Callable[[Sequence[I64]], I64],
) -> Pages:
    start = joined([place.start for place in places])
    end = joined([place.end for place in places])
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
