"""Runs of PTEs and the folios behind them -> extents, the rows of a trace; arrays, no loops over pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from replay.capture.folios import MAPCOUNT, MAPPED, NOPAGE, ORDER, PLACE, Bools, Folios, Pages
from replay.capture.procfs import (
    PM_EXCLUSIVE,
    PM_FILE,
    PM_PFRAME,
    PM_SOFT_DIRTY,
    PM_UFFD_WP,
    SWAP_TYPE_BITS,
    U64,
    Vma,
)
from replay.capture.runs import Runs, distinct
from replay.native.function import I32, I64, I32s, I64s, U8s, native, part
from replay.trace.kpageflags import (
    KPF_ANON,
    KPF_DIRTY,
    KPF_HUGE,
    KPF_ZERO_PAGE,
    bit,
)
from replay.trace.schema import HUGETLB, PAGE, PMD, SPECIAL, SWAP, ptes_per_table

ANON: Final = bit(KPF_ANON)
DIRTY: Final = bit(KPF_DIRTY)
HUGE: Final = bit(KPF_HUGE)
ZERO_PAGE: Final = bit(KPF_ZERO_PAGE)

FILE_BIT: Final = int(PM_FILE)
EXCLUSIVE_BIT: Final = int(PM_EXCLUSIVE)
SOFT_DIRTY_BIT: Final = int(PM_SOFT_DIRTY)
UFFD_WP_BIT: Final = int(PM_UFFD_WP)
FRAME_BITS: Final = int(PM_PFRAME)
"""Of pagemap words as int64."""

RAW_FRAMES, HUGETLB_PAGES, WRITES_BACK = range(3)
"""Rows of `VmaFacts` as a table."""

VPN, PFN, FLAGS, FOLIO, FOLIO_MAPCOUNT = range(5)
VMA, PAGES, COUNT, OWN, FOLIO_MAPPED = range(5)
KIND, FILE, EXCLUSIVE, SOFT_DIRTY, UFFD_WP, IS_DIRTY, FOLIO_ORDER = range(7)
"""Columns of extents as they are filled in: those of 64, 32 and 8 bits."""

TORN, TOUCHED = range(2)
"""Sums made on the way: extents that show that a folio changed; what `_touch` read."""

TOUCHED_RUNS: Final = 32


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


class Owner(NamedTuple):
    """An address space that extents belong to. mm: its number in the trace."""

    mm: int
    pid: int
    comm: str
    vmas: Sequence[Vma]


def vma_facts(vmas: Sequence[Vma]) -> VmaFacts:
    """`VmaFacts` of a process."""
    flags = [set(vma.flags.split()) for vma in vmas]
    return VmaFacts(
        # in a private mapping of frames, copied pages are anonymous and normal
        raw_frames=np.array(
            [bool(f & {"pf", "io"}) and v.perms[3] == "s" for f, v in zip(flags, vmas, strict=True)], bool
        ),
        hugetlb=np.array(["ht" in f for f in flags], bool),
        writes_back=np.array([v.perms[1] == "w" and v.perms[3] == "s" for v in vmas], bool),
    )


def maybe_mapped_again(some: Runs, facts: VmaFacts, entries: int, trust_exclusive: bool) -> I64:
    """Which runs may have pages that the address space maps more than once.

    PM_EXCLUSIVE says that a page is mapped once in all, but for hugetlb, and in a PMD mapping up to v6.10,
    where it is that of the head for all pages (Linux kernel commit 2c1f057e5be6); `entries` pages, those of a
    page-table page, may be such. trust_exclusive: False where the kernel does not count each page's mappings.
    """
    found = np.empty(len(some.vpn), np.int64)
    word, table = some.word.view(np.int64), np.array(facts, np.uint8)
    return found[: _find_again(word, some.pages, some.vma, table, entries, int(trust_exclusive), found)]


@native
def _find_again(
    word: I64, pages: I32, vma: I32, facts: U8s, entries: int, trust_exclusive: int, found: I64
) -> int:
    count = 0
    for run in range(len(word)):
        if word[run] >= 0 or facts[RAW_FRAMES, vma[run]] != 0:
            continue
        is_exclusive = word[run] & EXCLUSIVE_BIT != 0 and facts[HUGETLB_PAGES, vma[run]] == 0
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


@native
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

    index, own: as in `build`. The kernel says 0 for device pages (NOPAGE), an average where it does not count
    pages (CONFIG_NO_PAGE_MAPCOUNT; precise: False), and too little where a page was unmapped meanwhile.
    """
    changed = _raise_counts(runs.pages, index, pages.flags.view(np.int64), pages.counts, own)
    return changed if precise else 0


@native
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


def build(
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
    wide = np.empty((5, most), np.int64)
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
    )
    return extents, int(tally[TORN])


@native
def _fill_rows(
    vpn: I64,
    word: I64,
    pages: I32,
    vma: I32,
    index: I64,
    flags: I64,
    counts: I64,
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
                if in_table and (index[run] < 0 or _alike(place, flags, counts, own, number, folios)):
                    continue
            page, place = vpn[run] + begin, index[run] + begin
            middle[VMA, rows], wide[VPN, rows], middle[PAGES, rows] = area, page, offset - begin
            _fill_bits(rows, entry, narrow)
            if index[run] < 0:
                _fill_swap(rows, ((entry & FRAME_BITS) >> SWAP_TYPE_BITS) + begin, wide, middle, narrow)
            else:
                at_huge, at_dirty = _range_at(huge, at_huge, page), _range_at(dirty, at_dirty, page)
                _fill_folio(rows, (entry & FRAME_BITS) + begin, place, flags, number, folios, wide, narrow)
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


@part
def _touch(run: int, index: I64, flags: I64, counts: I64, number: I32) -> int:
    """Bring what the next runs need into the processor's cache, all at once: frames are anywhere."""
    total = 0
    for other in range(run, min(run + TOUCHED_RUNS, len(index))):
        place = max(index[other], 0)
        total += flags[place] + counts[place] + number[place]
    return total


@part
def _alike(place: int, flags: I64, counts: I64, own: I32, number: I32, folios: I64s) -> bool:
    """Whether a frame can be in one extent with the frame before it."""
    one, two = number[place - 1], number[place]
    if two >= 0 and folios[ORDER, two] > 0:
        # of a folio the flags of the head count; folios that are alike still are two
        if one != two:
            return False
    elif (one >= 0 and folios[ORDER, one] > 0) or flags[place - 1] != flags[place]:
        return False
    return counts[place - 1] == counts[place] and (len(own) == 0 or own[place - 1] == own[place])


@part
def _range_at(ranges: I64s, at: int, point: int) -> int:
    """The first range, from `at` on, that does not end before the point."""
    while at < ranges.shape[1] and ranges[1, at] <= point:
        at += 1
    return at


@part
def _is_inside(ranges: I64s, at: int, point: int) -> bool:
    return at < ranges.shape[1] and ranges[0, at] <= point


@part
def _is_normal(flags: int, entry: int, raw_frames: int) -> bool:
    """Whether vm_normal_page() finds a page: not for the zero page, nor for frames without one."""
    if flags & ZERO_PAGE != 0:
        return False
    return entry & FILE_BIT != 0 or (flags & ANON != 0 and raw_frames == 0)


@part
def _kind(is_normal: bool, is_hugetlb: bool, by_pmd: bool) -> int:
    if not is_normal:
        return SPECIAL
    if is_hugetlb:
        return HUGETLB
    return PMD if by_pmd else PAGE


@part
def _fill_bits(row: int, entry: int, narrow: U8s) -> None:
    narrow[FILE, row] = entry & FILE_BIT != 0
    narrow[EXCLUSIVE, row] = entry & EXCLUSIVE_BIT != 0
    narrow[SOFT_DIRTY, row] = entry & SOFT_DIRTY_BIT != 0
    narrow[UFFD_WP, row] = entry & UFFD_WP_BIT != 0


@part
def _fill_swap(row: int, offset: int, wide: I64s, middle: I32s, narrow: U8s) -> None:
    """Nothing is known of a swap entry but its place in swap."""
    wide[PFN, row], wide[FLAGS, row], wide[FOLIO, row], wide[FOLIO_MAPCOUNT, row] = offset, 0, 0, 0
    middle[COUNT, row], middle[OWN, row], middle[FOLIO_MAPPED, row] = 0, 0, 0
    narrow[KIND, row], narrow[IS_DIRTY, row], narrow[FOLIO_ORDER, row] = SWAP, 0, 0


@part
def _fill_folio(
    row: int, pfn: int, place: int, flags: I64, number: I32, folios: I64s, wide: I64s, narrow: U8s
) -> None:
    """Frame, and head, order and flags of its folio."""
    head, order = place, 0
    if number[place] >= 0 and folios[ORDER, number[place]] > 0:
        head, order = folios[PLACE, number[place]], folios[ORDER, number[place]]
    # several flags stand only on the head (v6.1)
    wide[PFN, row], wide[FLAGS, row], wide[FOLIO, row] = pfn, flags[head], pfn - (place - head)
    narrow[FOLIO_ORDER, row] = order


@part
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
