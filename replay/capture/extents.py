# SPDX-License-Identifier: Apache-2.0
"""Extents, the rows of a trace, and what is found of pages before they are cut: VMAs, mappings, counts.

`cut.rows_of` cuts them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from replay.capture.folios import MAPCOUNT, MAPPED, NOPAGE, ORDER, PLACE, Bools, Folios, Pages
from replay.capture.runs import Runs, cover, distinct
from replay.jit.compiled import I32, I64, I64s, U8s, compiled
from replay.procfs.files import PM_EXCLUSIVE, U64, Vma
from replay.trace.kpageflags import KPF_ANON, KPF_DIRTY, KPF_HUGE, KPF_ZERO_PAGE, bit

ANON: Final = bit(KPF_ANON)
DIRTY: Final = bit(KPF_DIRTY)
HUGE: Final = bit(KPF_HUGE)
ZERO_PAGE: Final = bit(KPF_ZERO_PAGE)

RAW_FRAMES, HUGETLB_PAGES, WRITES_BACK = range(3)
"""Rows of `VmaFacts` as a table."""


class VmaFacts(NamedTuple):
    """What extents need of each VMA; arrays of shape (vmas,)."""

    raw_frames: Bools
    """Maps frames without looking at a struct page: VM_PFNMAP or VM_IO, and shared."""
    hugetlb: Bools
    writes_back: Bools
    """Shared and writable: its PTEs can be dirty."""


class Ranges(NamedTuple):
    """Sorted, disjoint ranges [start, end) with a value each; int64, shape (n,)."""

    start: I64
    end: I64
    value: I64

    def at(self, points: I64, default: int) -> I64:
        """The value of the range that holds each point."""
        if not len(self.start):
            return np.full(len(points), default, np.int64)
        place = np.searchsorted(self.start, points, side="right") - 1
        inside = (place >= 0) & (points < self.end[place])
        return np.where(inside, self.value[place], default)

    def bounds(self) -> I64:
        """Where a value begins or ends, sorted."""
        return distinct(np.concatenate([self.start, self.end]))


class Entries(NamedTuple):
    """Frames that an address space maps, as frame ranges.

    mapped: all of them, with the number of entries. shared: those that an entry without PM_EXCLUSIVE maps;
    another address space may map their folios too.
    """

    mapped: Ranges
    shared: Ranges


class Extents(NamedTuple):
    """Rows of a trace but for the columns that follow from address space and VMA; arrays of shape (n,)."""

    vma: npt.NDArray[np.int32]
    vpn: I64
    pages: npt.NDArray[np.uint32]
    kind: npt.NDArray[np.uint8]
    pfn: I64
    file: Bools
    exclusive: Bools
    soft_dirty: Bools
    uffd_wp: Bools
    kpageflags: U64
    mapcount: npt.NDArray[np.uint32]
    own: npt.NDArray[np.uint32]
    dirty: Bools
    folio: I64
    order: npt.NDArray[np.uint8]
    folio_mapped: npt.NDArray[np.uint32]
    folio_mapcount: npt.NDArray[np.uint64]
    memcg: npt.NDArray[np.uint64]


class Owner(NamedTuple):
    """An address space that extents belong to. mm: its number in the trace."""

    mm: int
    pid: int
    comm: str
    vmas: Sequence[Vma]


def vma_facts(vmas: Sequence[Vma]) -> VmaFacts:
    """`VmaFacts` of a process."""
    facts = np.array([_facts(vma.perms, vma.flags) for vma in vmas], bool).reshape(-1, 3)
    return VmaFacts(*np.ascontiguousarray(facts.T))


@functools.lru_cache(maxsize=1 << 10)
def _facts(perms: str, flags: str) -> tuple[bool, bool, bool]:
    """The columns of `VmaFacts` for one VMA. A few kinds of VMAs make up all processes."""
    named, is_shared = set(flags.split()), perms[3] == "s"
    # in a private mapping of frames, copied pages are anonymous and normal
    return bool(named & {"pf", "io"}) and is_shared, "ht" in named, perms[1] == "w" and is_shared


def maybe_mapped_again(some: Runs, facts: VmaFacts, entries: int, trust_exclusive: bool) -> I64:
    """Which runs may have pages that the address space maps more than once.

    PM_EXCLUSIVE says that a page is mapped once in all, but for hugetlb, and in a PMD mapping up to v6.10,
    where it is that of the head for all pages (Linux kernel commit 2c1f057e5be6); `entries` pages, those of a
    page-table page, may be such. trust_exclusive: False where the kernel does not count each page's mappings.
    """
    found = np.empty(len(some.vpn), np.int64)
    word, table = some.word.view(np.int64), np.array(facts, np.uint8)
    return found[: _find_again(word, some.pages, some.vma, table, entries, int(trust_exclusive), found)]


@compiled
def _find_again(
    word: I64, pages: I32, vma: I32, facts: U8s, entries: int, trust_exclusive: int, found: I64
) -> int:
    count = 0
    for run in range(len(word)):
        if word[run] >= 0 or facts[RAW_FRAMES, vma[run]] != 0:
            continue
        is_exclusive = word[run] & PM_EXCLUSIVE != 0 and facts[HUGETLB_PAGES, vma[run]] == 0
        if trust_exclusive == 0 or not is_exclusive or pages[run] >= entries:
            found[count] = run
            count += 1
    return count


def own_of_frames(pages: Pages, own: Ranges) -> I32:
    """How often the address space maps each frame of `pages` if it does; of no frames: none more than once.

    own: frame ranges that it maps several times, with the number.
    """
    if not len(own.start):
        return np.zeros(0, np.int32)
    found = np.ones(len(pages.counts), np.int32)
    _spread(pages.start, pages.end, pages.offset, own.start, own.end, own.value, found)
    return found


@compiled
def _spread(start: I64, end: I64, offset: I64, first: I64, last: I64, value: I64, out: I32) -> int:
    """Give the frames of ranges [first, last) their value, as far as they are in the pieces."""
    piece = 0
    for number in range(len(first)):
        while piece < len(start) and end[piece] <= first[number]:
            piece += 1
        other = piece
        while other < len(start) and start[other] < last[number]:
            for frame in range(max(first[number], start[other]), min(last[number], end[other])):
                out[offset[other] + frame - start[other]] = value[number]
            other += 1
    return len(first)


def raise_counts(runs: Runs, index: I64, pages: Pages, own: I32, precise: bool) -> int:
    """Raise counts in place to the address space's own mappings; returns how many pages that changed.

    index, own: as in `cut.rows_of`. The kernel says 0 for device pages (NOPAGE), an average where it does
    not count pages (CONFIG_NO_PAGE_MAPCOUNT; precise: False), too little where a page was unmapped meanwhile.
    """
    changed = _raise_counts(runs.pages, index, pages.flags.view(np.int64), pages.counts, own)
    return changed if precise else 0


@compiled
def _raise_counts(sizes: I32, index: I64, flags: I64, counts: I64, own: I32) -> int:
    """Returns how many pages were raised, without device pages."""
    changed = 0
    for run in range(len(sizes)):
        if index[run] < 0:
            continue
        for place in range(index[run], index[run] + sizes[run]):
            mappings = own[place] if len(own) > 0 else 1
            if counts[place] < mappings and flags[place] & ZERO_PAGE == 0:
                counts[place] = mappings
                changed += flags[place] & NOPAGE == 0
    return changed


def entries_of(frame: I64, pages: I32, exclusive: Bools) -> Entries:
    """`Entries` of all runs of an address space but those of VMAs with raw frames; arrays of shape (n,)."""

    def covered(which: Bools) -> Ranges:
        return Ranges(*cover(frame[which], frame[which] + pages[which], least=1))

    return Entries(covered(np.ones(len(frame), bool)), covered(~exclusive))


def count_exclusive(pages: Pages, found: Folios, entries: Entries) -> None:
    """Replace averages by mapcounts, in `pages` and `found`, for folios that only the address space maps.

    With CONFIG_NO_PAGE_MAPCOUNT, kpagecount says for each page of a large folio the average over its pages,
    at least 1. PM_EXCLUSIVE then says that one address space maps the folio (Linux v7.3,
    folio_maybe_mapped_shared()): where all entries have it, the mapcount of a page is the number of its
    entries. The kernel may leave the bit out though nobody else maps the folio, where three address spaces
    did so before: such a folio keeps its average, raised to what the address space maps. hugetlb folios are
    mapped as a whole, and their average is exact.
    """
    count = len(pages.counts)
    times, shared = np.zeros(count, np.int32), np.zeros(count, np.int32)
    for ranges, out in ((entries.mapped, times), (entries.shared, shared)):
        _spread(pages.start, pages.end, pages.offset, ranges.start, ranges.end, ranges.value, out)
    _count_exclusive(pages.flags.view(np.int64), pages.counts, found.number, found.facts, times, shared)


@compiled
def _count_exclusive(flags: I64, counts: I64, number: I32, folios: I64s, times: I32, shared: I32) -> int:
    """Returns how many folios have mapcounts now. times, shared: by frame, what `Entries` says, else 0."""
    changed = place = 0
    while place < len(counts):
        folio = number[place]
        if folio < 0 or folios[ORDER, folio] == 0 or flags[place] & HUGE != 0:
            place += 1
            continue
        first = folios[PLACE, folio]
        mapped = sharers = 0
        place = first + (1 << folios[ORDER, folio])
        for page in range(first, place):
            mapped += times[page] > 0
            sharers += shared[page]
        if mapped > 0 and flags[first] & ZERO_PAGE == 0:
            mapped = mapcount = 0
            for page in range(first, place):
                # an average may be less than what the address space maps, here or in another portion
                counts[page] = times[page] if sharers == 0 else max(counts[page], times[page])
                mapped += counts[page] > 0
                mapcount += counts[page]
            folios[MAPPED, folio], folios[MAPCOUNT, folio] = mapped, mapcount
            changed += sharers == 0
    return changed
