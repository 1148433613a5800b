# SPDX-License-Identifier: Apache-2.0
"""Runs of PTEs and the folios behind them -> extents: one loop over all pages, a row at the end of each."""

from __future__ import annotations

from typing import Final

import numpy as np

from replay.capture.extents import (
    ANON,
    DIRTY,
    HUGE,
    HUGETLB_PAGES,
    RAW_FRAMES,
    WRITES_BACK,
    ZERO_PAGE,
    Extents,
    Ranges,
    VmaFacts,
)
from replay.capture.folios import MAPCOUNT, MAPPED, NOPAGE, ORDER, PLACE, Folios, Pages
from replay.capture.runs import MARKER_TYPE, Runs, distinct
from replay.jit.compiled import I32, I64, I32s, I64s, U8s, compiled, inline
from replay.procfs.files import (
    PM_EXCLUSIVE,
    PM_FILE,
    PM_PFRAME,
    PM_SOFT_DIRTY,
    PM_UFFD_WP,
    SWAP_TYPE_BITS,
)
from replay.trace.schema import HUGETLB, MARKER, PAGE, PMD, SPECIAL, SWAP, ptes_per_table

VPN, PFN, FLAGS, FOLIO, FOLIO_MAPCOUNT, MEMCG = range(6)
VMA, PAGES, COUNT, OWN, FOLIO_MAPPED = range(5)
KIND, FILE, EXCLUSIVE, SOFT_DIRTY, UFFD_WP, IS_DIRTY, FOLIO_ORDER = range(7)
"""Columns of extents as they are filled in: those of 64, 32 and 8 bits."""

TORN, TOUCHED = range(2)
"""Sums made on the way: extents that show that a folio changed; what `_touch` read."""

TOUCHED_RUNS: Final = 32


def rows_of(
    runs: Runs,
    index: I64,
    pages: Pages,
    folios: Folios,
    facts: VmaFacts,
    own: I32,
    huge: Ranges,
    dirty: Ranges | None,
    page_size: int,
) -> tuple[Extents, int]:
    """The extents of `runs`, in address order, and how many of them show that a folio changed.

    runs: in address order. index: int64, shape (runs,), the place of each run's first frame in `pages`; -1
    for swap entries. pages, folios: every folio that the runs touch. own: int32, shape (frames,), how often
    the address space maps each frame of `pages` if it does; shape (0,): once. huge: page ranges mapped by a
    PMD. dirty: page ranges dirty in the PTE if that is known.
    """
    most = int(runs.pages.sum())
    wide = np.empty((6, most), np.int64)
    middle = np.empty((5, most), np.int32)
    narrow = np.empty((7, most), np.uint8)
    tally = np.zeros(2, np.int64)
    none = np.zeros(0, np.int64)
    known = Ranges(none, none, none) if dirty is None else dirty
    count = _fill_rows(
        runs.vpn,
        runs.word.view(np.int64),
        runs.pages,
        runs.vma,
        index,
        pages.flags.view(np.int64),
        pages.counts,
        pages.memcg,
        own,
        folios.number,
        folios.facts,
        np.array(facts, np.uint8),
        np.array([huge.start, huge.end]),
        np.array([known.start, known.end]),
        distinct(np.concatenate([huge.start, huge.end, known.start, known.end])),
        int(dirty is not None),
        ptes_per_table(page_size),
        wide,
        middle,
        narrow,
        tally,
    )
    extents = Extents(
        vma=middle[VMA, :count],
        vpn=wide[VPN, :count],
        pages=middle[PAGES, :count].view(np.uint32),
        kind=narrow[KIND, :count],
        pfn=wide[PFN, :count],
        file=narrow[FILE, :count].view(np.bool_),
        exclusive=narrow[EXCLUSIVE, :count].view(np.bool_),
        soft_dirty=narrow[SOFT_DIRTY, :count].view(np.bool_),
        uffd_wp=narrow[UFFD_WP, :count].view(np.bool_),
        kpageflags=wide[FLAGS, :count].view(np.uint64),
        mapcount=middle[COUNT, :count].view(np.uint32),
        own=middle[OWN, :count].view(np.uint32),
        dirty=narrow[IS_DIRTY, :count].view(np.bool_),
        folio=wide[FOLIO, :count],
        order=narrow[FOLIO_ORDER, :count],
        folio_mapped=middle[FOLIO_MAPPED, :count].view(np.uint32),
        folio_mapcount=wide[FOLIO_MAPCOUNT, :count].view(np.uint64),
        memcg=wide[MEMCG, :count].view(np.uint64),
    )
    return extents, int(tally[TORN])


@compiled
def _fill_rows(
    vpn: I64,
    word: I64,
    pages: I32,
    vma: I32,
    index: I64,
    flags: I64,
    counts: I64,
    memcg: I64,
    own: I32,
    number: I32,
    folios: I64s,
    facts: U8s,
    huge: I64s,
    dirty: I64s,
    cuts: I64,
    dirty_known: int,
    entries: int,
    wide: I64s,
    middle: I32s,
    narrow: U8s,
    tally: I64,
) -> int:
    """Cut the runs into extents, and fill in their columns; returns how many there are.

    facts: rows `RAW_FRAMES` to `WRITES_BACK`. huge, dirty: starts and ends of ranges. cuts: pages at which
    extents begin in any case. tally: `TORN` and `TOUCHED` are added to.
    """
    rows = cut = at_huge = at_dirty = 0
    for run in range(len(vpn)):
        if run % TOUCHED_RUNS == 0:
            tally[TOUCHED] += _touch(run, index, flags, counts, number)
        area, entry, begin = vma[run], word[run], 0
        for offset in range(1, pages[run] + 1):
            page, place = vpn[run] + offset, index[run] + offset
            while cut < len(cuts) and cuts[cut] < page:
                cut += 1
            if offset < pages[run] and (cut == len(cuts) or cuts[cut] != page):
                in_table = page & (entries - 1) != 0 or facts[HUGETLB_PAGES, area] != 0
                if in_table and (index[run] < 0 or _alike(place, flags, counts, memcg, own, number, folios)):
                    continue
            page, place = vpn[run] + begin, index[run] + begin
            middle[VMA, rows], wide[VPN, rows], middle[PAGES, rows] = area, page, offset - begin
            _fill_bits(rows, entry, narrow)
            if index[run] < 0:
                _fill_absent(rows, entry & PM_PFRAME, begin, wide, middle, narrow)
            else:
                at_huge, at_dirty = _range_at(huge, at_huge, page), _range_at(dirty, at_dirty, page)
                _fill_folio(
                    rows, (entry & PM_PFRAME) + begin, place, flags, memcg, number, folios, wide, narrow
                )
                found, order = wide[FLAGS, rows], int(narrow[FOLIO_ORDER, rows])
                is_normal = _is_normal(found, entry, facts[RAW_FRAMES, area])
                by_pmd = _is_inside(huge, at_huge, page) and (1 << order >= entries or found & NOPAGE != 0)
                narrow[KIND, rows] = _kind(
                    is_normal, facts[HUGETLB_PAGES, area] != 0 or found & HUGE != 0, by_pmd
                )
                if dirty_known != 0:
                    is_dirty = _is_inside(dirty, at_dirty, page)
                else:
                    is_dirty = facts[WRITES_BACK, area] != 0 and found & ANON == 0 and found & DIRTY != 0
                narrow[IS_DIRTY, rows] = is_normal and is_dirty
                _fill_counts(rows, is_normal, place, counts, own, number, folios, wide, middle, narrow)
                tally[TORN] += order == 0 and number[place] >= 0 and narrow[KIND, rows] != SPECIAL
            begin = offset
            rows += 1
    return rows


@inline
def _touch(run: int, index: I64, flags: I64, counts: I64, number: I32) -> int:
    """Bring what the next runs need into the processor's cache, all at once: frames are anywhere."""
    total = 0
    for other in range(run, min(run + TOUCHED_RUNS, len(index))):
        place = max(index[other], 0)
        total += flags[place] + counts[place] + number[place]
    return total


@inline
def _alike(place: int, flags: I64, counts: I64, memcg: I64, own: I32, number: I32, folios: I64s) -> bool:
    """Whether a frame can be in one extent with the frame before it."""
    one, two = number[place - 1], number[place]
    if two >= 0 and folios[ORDER, two] > 0:
        # of a folio the flags of the head count; folios that are alike still are two
        if one != two:
            return False
    elif (one >= 0 and folios[ORDER, one] > 0) or not _describe_alike(place, flags, memcg):
        return False
    return counts[place - 1] == counts[place] and (len(own) == 0 or own[place - 1] == own[place])


@inline
def _describe_alike(place: int, flags: I64, memcg: I64) -> bool:
    """Whether flags and memory cgroup of a frame of order 0 are those of the frame before it."""
    return flags[place - 1] == flags[place] and (len(memcg) == 0 or memcg[place - 1] == memcg[place])


@inline
def _range_at(ranges: I64s, at: int, point: int) -> int:
    """The first range, from `at` on, that does not end before the point."""
    while at < ranges.shape[1] and ranges[1, at] <= point:
        at += 1
    return at


@inline
def _is_inside(ranges: I64s, at: int, point: int) -> bool:
    return at < ranges.shape[1] and ranges[0, at] <= point


@inline
def _is_normal(flags: int, entry: int, raw_frames: int) -> bool:
    """Whether vm_normal_page() finds a page: not for the zero page, nor for frames without one."""
    if flags & ZERO_PAGE != 0:
        return False
    return entry & PM_FILE != 0 or (flags & ANON != 0 and raw_frames == 0)


@inline
def _kind(is_normal: bool, is_hugetlb: bool, by_pmd: bool) -> int:
    if not is_normal:
        return SPECIAL
    if is_hugetlb:
        return HUGETLB
    return PMD if by_pmd else PAGE


@inline
def _fill_bits(row: int, entry: int, narrow: U8s) -> None:
    narrow[FILE, row] = entry & PM_FILE != 0
    narrow[EXCLUSIVE, row] = entry & PM_EXCLUSIVE != 0
    narrow[SOFT_DIRTY, row] = entry & PM_SOFT_DIRTY != 0
    narrow[UFFD_WP, row] = entry & PM_UFFD_WP != 0


@inline
def _fill_absent(row: int, place: int, begin: int, wide: I64s, middle: I32s, narrow: U8s) -> None:
    """Nothing is known of a swap entry but its place in swap, and nothing of a marker."""
    is_marker = place & MARKER_TYPE == MARKER_TYPE
    offset = 0 if is_marker else (place >> SWAP_TYPE_BITS) + begin
    wide[PFN, row], wide[FLAGS, row], wide[FOLIO, row], wide[FOLIO_MAPCOUNT, row] = offset, 0, 0, 0
    wide[MEMCG, row] = 0
    middle[COUNT, row], middle[OWN, row], middle[FOLIO_MAPPED, row] = 0, 0, 0
    narrow[KIND, row], narrow[IS_DIRTY, row], narrow[FOLIO_ORDER, row] = MARKER if is_marker else SWAP, 0, 0


@inline
def _fill_folio(
    row: int,
    pfn: int,
    place: int,
    flags: I64,
    memcg: I64,
    number: I32,
    folios: I64s,
    wide: I64s,
    narrow: U8s,
) -> None:
    """Frame, and head, order, flags and memory cgroup of its folio."""
    head, order = place, 0
    if number[place] >= 0 and folios[ORDER, number[place]] > 0:
        head, order = folios[PLACE, number[place]], folios[ORDER, number[place]]
    # several flags stand only on the head (v6.1)
    wide[PFN, row], wide[FLAGS, row], wide[FOLIO, row] = pfn, flags[head], pfn - (place - head)
    wide[MEMCG, row] = memcg[head] if len(memcg) > 0 else 0
    narrow[FOLIO_ORDER, row] = order


@inline
def _fill_counts(
    row: int,
    is_normal: bool,
    place: int,
    counts: I64,
    own: I32,
    number: I32,
    folios: I64s,
    wide: I64s,
    middle: I32s,
    narrow: U8s,
) -> None:
    """Mappings of the page and of its folio; of what is not normal nobody counts them."""
    count = counts[place] if is_normal else 0
    mapped, mapcount = int(count > 0), count
    if is_normal and narrow[FOLIO_ORDER, row] > 0:
        mapped, mapcount = folios[MAPPED, number[place]], folios[MAPCOUNT, number[place]]
    middle[COUNT, row], middle[FOLIO_MAPPED, row], wide[FOLIO_MAPCOUNT, row] = count, mapped, mapcount
    mappings = own[place] if len(own) > 0 else 1
    middle[OWN, row] = mappings if is_normal else 0
