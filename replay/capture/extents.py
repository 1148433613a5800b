"""Runs of PTEs and the folios behind them -> extents, the rows of a trace; arrays, no loops over pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from replay.capture.folios import Bools, Folios, Pages, folios_of
from replay.capture.procfs import PM_EXCLUSIVE, PM_FILE, PM_SOFT_DIRTY, PM_UFFD_WP, SWAP_TYPE_BITS, U64, Vma
from replay.capture.runs import Runs, cuts_inside
from replay.trace.kpageflags import (
    KPF_ANON,
    KPF_DIRTY,
    KPF_HUGE,
    KPF_NOPAGE,
    KPF_ZERO_PAGE,
    bit,
)
from replay.trace.schema import HUGETLB, PAGE, PMD, SPECIAL, SWAP, ptes_per_table

I64 = npt.NDArray[np.int64]

ANON: Final = np.uint64(bit(KPF_ANON))
DIRTY: Final = np.uint64(bit(KPF_DIRTY))
HUGE: Final = np.uint64(bit(KPF_HUGE))
NOPAGE: Final = np.uint64(bit(KPF_NOPAGE))
ZERO_PAGE: Final = np.uint64(bit(KPF_ZERO_PAGE))


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
        return np.unique(np.concatenate([self.start, self.end]))


NO_RANGES: Final = Ranges(*(np.zeros(0, np.int64) for _ in range(3)))


class Extents(NamedTuple):
    """Rows of a trace but for the columns that follow from address space and VMA; arrays of shape (n,)."""

    vma: I64
    vpn: I64
    pages: I64
    kind: npt.NDArray[np.uint8]
    pfn: I64
    file: Bools
    exclusive: Bools
    soft_dirty: Bools
    uffd_wp: Bools
    kpageflags: U64
    mapcount: I64
    own: I64
    dirty: Bools
    folio: I64
    order: npt.NDArray[np.uint8]
    folio_mapped: I64
    folio_mapcount: I64


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


def build(
    runs: Runs,
    pages: Pages,
    facts: VmaFacts,
    own: Ranges,
    huge: Ranges,
    dirty: Ranges | None,
    page_size: int,
    precise: bool,
) -> tuple[Extents, int]:
    """The extents of `runs`, in address order, and how many pages were seen to change.

    runs: in address order. pages: words of every folio that they touch; counts are raised in place to the
    mappings that are known. own: frame ranges that the address space maps several times, with the number.
    huge: page ranges mapped by a PMD. dirty: page ranges dirty in the PTE if that is known. precise:
    whether kpagecount counts each page.
    """
    present = np.flatnonzero(runs.present)
    index = np.full(len(runs.vpn), -1)
    index[present] = pages.places(runs.frame[present])
    changed = _raise_counts(runs.select(present), index[present], pages, own, precise)
    folios = folios_of(pages)
    run, offset = _split(runs, index, pages, folios, facts, own, huge, dirty, page_size)
    extents = _columns(
        runs, run, offset, index[run] + offset, pages, folios, facts, own, huge, dirty, page_size
    )
    return extents, changed + int(folios.torn[_folio_of(folios, extents, index[run] + offset)].sum())


def _folio_of(folios: Folios, extents: Extents, index: I64) -> I64:
    return np.unique(folios.number[index[(extents.kind != SWAP) & (extents.kind != SPECIAL)]])


def _raise_counts(present: Runs, index: I64, pages: Pages, own: Ranges, precise: bool) -> int:
    """Raise counts below the address space's own mappings; returns how many pages that changed.

    The kernel says 0 for device pages (NOPAGE), an average where it does not count pages
    (CONFIG_NO_PAGE_MAPCOUNT), and too little where a page was unmapped while it was read.
    """
    change = np.bincount(index, minlength=len(pages.counts) + 1) - np.bincount(
        index + present.pages, minlength=len(pages.counts) + 1
    )
    least = (np.cumsum(change[:-1]) > 0).astype(np.int64)
    least[pages.flags & ZERO_PAGE != 0] = 0
    if len(own.start):
        frames = np.repeat(pages.start - pages.offset, pages.end - pages.start) + np.arange(len(least))
        least *= own.at(frames, 1)
    low = pages.counts < least
    changed = int((low & (pages.flags & NOPAGE == 0)).sum()) if precise else 0
    np.maximum(pages.counts, least, out=pages.counts)
    return changed


def _split(
    runs: Runs,
    index: I64,
    pages: Pages,
    folios: Folios,
    facts: VmaFacts,
    own: Ranges,
    huge: Ranges,
    dirty: Ranges | None,
    page_size: int,
) -> tuple[I64, I64]:
    """Where extents begin: (run, offset in it), in address order."""
    long = np.flatnonzero(runs.pages > 1)
    vpn, size = runs.vpn[long], runs.pages[long]
    parts = [(np.arange(len(runs.vpn)), np.zeros(len(runs.vpn), np.int64))]

    def cut(which: Bools | slice, starts: I64, cuts: I64) -> None:
        among, offset = cuts_inside(starts[which], size[which], cuts)
        parts.append((long[which][among], offset))

    table = ~facts.hugetlb[runs.vma[long]]
    parts.append(_table_cuts(long[table], vpn[table], size[table], ptes_per_table(page_size)))
    cut(slice(None), vpn, huge.bounds())
    if dirty is not None:
        cut(slice(None), vpn, dirty.bounds())
    present = index[long] >= 0
    cut(present, runs.frame[long], own.bounds())
    cut(present, index[long], _differences(pages, folios))
    if len(parts[1:]) and not any(len(run) for run, _ in parts[1:]):
        return parts[0]
    run, offset = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    vpn = np.unique(runs.vpn[run] + offset)
    run = np.searchsorted(runs.vpn, vpn, side="right") - 1
    return run, vpn - runs.vpn[run]


def _table_cuts(run: I64, vpn: I64, size: I64, entries: int) -> tuple[I64, I64]:
    """Where runs go on to the next page-table page."""
    counts = (vpn + size - 1) // entries - vpn // entries
    among = np.repeat(np.arange(len(run)), counts)
    number = np.arange(len(among)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    return run[among], (vpn[among] // entries + number) * entries - vpn[among]


def _differences(pages: Pages, folios: Folios) -> I64:
    """Indices of frames that cannot be in one extent with the frame before them."""
    counts, number = pages.counts, folios.number
    differ = counts[1:] != counts[:-1]
    # a folio begins, and it is not an order-0 folio like its neighbour
    joins = np.zeros(len(folios.head), bool)
    joins[1:] = (folios.order[1:] == 0) & (folios.order[:-1] == 0) & (folios.flags[1:] == folios.flags[:-1])
    begins = number[1:] != number[:-1]
    return np.flatnonzero(differ | (begins & ~joins[number[1:]])) + 1


def _columns(
    runs: Runs,
    run: I64,
    offset: I64,
    index: I64,
    pages: Pages,
    folios: Folios,
    facts: VmaFacts,
    own: Ranges,
    huge: Ranges,
    dirty: Ranges | None,
    page_size: int,
) -> Extents:
    word, vma, vpn = runs.word[run], runs.vma[run], runs.vpn[run] + offset
    swap = ~runs.present[run]
    number = np.where(swap, 0, index)
    if len(folios.head):
        number = folios.number[number]
        flags, order = folios.flags[number], folios.order[number]
        head, mapped, mapcount = folios.head[number], folios.mapped[number], folios.mapcount[number]
        counts = pages.counts[np.where(swap, 0, index)]
    else:
        flags, order = np.zeros(len(run), np.uint64), np.zeros(len(run), np.uint8)
        head = mapped = mapcount = counts = np.zeros(len(run), np.int64)
    frame = runs.frame[run]
    frame = np.where(swap, frame >> SWAP_TYPE_BITS, frame) + offset
    file = word & PM_FILE != 0
    anon = (flags & ANON != 0) & ~facts.raw_frames[vma]
    normal = ~swap & (file | anon) & (flags & ZERO_PAGE == 0)
    by_pmd = (huge.at(vpn, 0) > 0) & ((order >= _order(ptes_per_table(page_size))) | (flags & NOPAGE != 0))
    hugetlb = normal & (facts.hugetlb[vma] | (flags & HUGE != 0))
    kind = np.select([swap, ~normal, hugetlb, by_pmd], [SWAP, SPECIAL, HUGETLB, PMD], PAGE).astype(np.uint8)
    if dirty is None:
        is_dirty = normal & (flags & ANON == 0) & facts.writes_back[vma] & (flags & DIRTY != 0)
    else:
        is_dirty = normal & (dirty.at(vpn, 0) > 0)
    begin = np.append(vpn, 0)
    end = runs.vpn[run] + runs.pages[run]
    following = np.flatnonzero(run[1:] == run[:-1])
    size = end - vpn
    size[following] = begin[following + 1] - begin[following]
    return Extents(
        vma=vma,
        vpn=vpn,
        pages=size,
        kind=kind,
        pfn=frame,
        file=file,
        exclusive=word & PM_EXCLUSIVE != 0,
        soft_dirty=word & PM_SOFT_DIRTY != 0,
        uffd_wp=word & PM_UFFD_WP != 0,
        kpageflags=np.where(swap, np.uint64(0), flags),
        mapcount=np.where(normal, counts, 0),
        own=np.where(normal, own.at(frame, 1), 0),
        dirty=is_dirty,
        folio=np.where(swap, 0, np.where(order > 0, head, frame)),
        order=np.where(swap, np.uint8(0), order),
        folio_mapped=np.where(normal, mapped, 0),
        folio_mapcount=np.where(normal, mapcount, 0),
    )


def _order(pages: int) -> int:
    return pages.bit_length() - 1
