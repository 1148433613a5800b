"""Runs of PTEs and the folios behind them -> extents, the rows of a trace; arrays, no loops over pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from replay.capture.folios import Bools, Folios, Pages
from replay.capture.procfs import PM_EXCLUSIVE, PM_FILE, PM_SOFT_DIRTY, PM_UFFD_WP, SWAP_TYPE_BITS, U64, Vma
from replay.capture.runs import Runs, cuts_inside, distinct
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
I32 = npt.NDArray[np.int32]

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


def maybe_mapped_again(some: Runs, facts: VmaFacts, entries: int, trust_exclusive: bool) -> Bools:
    """Which runs may have pages that the address space maps more than once.

    PM_EXCLUSIVE says that a page is mapped once in all, but for hugetlb, and in a PMD mapping up to v6.10,
    where it is that of the head for all pages (Linux kernel commit 2c1f057e5be6); `entries` pages, those of a
    page-table page, may be such. trust_exclusive: False where the kernel does not count each page's mappings.
    """
    again = some.present & ~facts.raw_frames[some.vma]
    if trust_exclusive:
        again &= (some.word & PM_EXCLUSIVE == 0) | facts.hugetlb[some.vma] | (some.pages >= entries)
    return again


def differences(pages: Pages, folios: Folios, own: I32 | None) -> I64:
    """Places in `pages` of frames that cannot be in one extent with the frame before them, sorted.

    own: as in `build`.
    """
    differ = np.zeros(len(pages.counts) + 1, bool)
    inner = differ[1:-1]
    # of a folio the flags of the head count: only order-0 neighbours may differ in theirs
    inner |= (pages.flags[1:] != pages.flags[:-1]) & (folios.order[1:] == 0)
    for column in (pages.counts, folios.order) if own is None else (pages.counts, folios.order, own):
        inner |= column[1:] != column[:-1]
    # large folios that are alike still are two
    differ[folios.place] = True
    return np.flatnonzero(differ)


def build(
    runs: Runs,
    index: I64,
    pages: Pages,
    folios: Folios,
    apart: I64,
    facts: VmaFacts,
    own: I32 | None,
    huge: Ranges,
    dirty: Ranges | None,
    page_size: int,
) -> tuple[Extents, int]:
    """The extents of `runs`, in address order, and how many of them show that a folio changed.

    runs: in address order. index: int64, shape (runs,), the place of each run's first frame in `pages`; -1
    for swap entries. pages, folios: every folio that the runs touch. apart: as of `differences`. own: shape
    (frames,), how often the address space maps each frame of `pages` if it does; None: once. huge: page
    ranges mapped by a PMD. dirty: page ranges dirty in the PTE if that is known.
    """
    run, offset = _split(runs, index, apart, facts, huge, dirty, page_size)
    if len(run) != len(index):
        index = np.where(index[run] < 0, -1, index[run] + offset)
    extents = _columns(runs, run, offset, index, pages, folios, facts, own, huge, dirty, page_size)
    if not folios.torn.any():
        return extents, 0
    mapped = index[(extents.kind != SWAP) & (extents.kind != SPECIAL)]
    return extents, int(folios.torn[mapped].sum())


def own_of_frames(pages: Pages, own: Ranges) -> I32 | None:
    """How often the address space maps each frame of `pages` if it does; None: no frame more than once.

    own: frame ranges that it maps several times, with the number.
    """
    if not len(own.start):
        return None
    return own.at(pages.frames(np.arange(len(pages.counts))), 1).astype(np.int32)


def raise_counts(
    blocks: Sequence[Runs], places: Sequence[I64], pages: Pages, own: I32 | None, precise: bool
) -> int:
    """Raise counts in place to the address space's own mappings; returns how many pages that changed.

    The kernel says 0 for device pages (NOPAGE), an average where it does not count pages
    (CONFIG_NO_PAGE_MAPCOUNT; precise: False), and too little where a page was unmapped while it was read.
    """
    low = np.flatnonzero(pages.counts < (1 if own is None else own))
    low = low[pages.flags[low] & ZERO_PAGE == 0]
    if not len(low):
        return 0
    single = np.zeros(len(pages.counts), bool)
    depth = np.zeros(len(low) + 1, np.int64)
    for block, index in zip(blocks, places, strict=True):
        present = index >= 0
        single[index[present & (block.pages == 1)]] = True
        long = present & (block.pages > 1)
        np.add.at(depth, np.searchsorted(low, index[long]), 1)
        np.add.at(depth, np.searchsorted(low, index[long] + block.pages[long]), -1)
    mapped = single[low] | (np.cumsum(depth)[:-1] > 0)
    low = low[mapped]
    pages.counts[low] = 1 if own is None else own[low]
    return int((pages.flags[low] & NOPAGE == 0).sum()) if precise else 0


def _split(
    runs: Runs,
    index: I64,
    apart: I64,
    facts: VmaFacts,
    huge: Ranges,
    dirty: Ranges | None,
    page_size: int,
) -> tuple[I64, I64]:
    """Where extents begin: (run, offset in it), in address order."""
    begins = np.arange(len(runs.vpn)), np.zeros(len(runs.vpn), np.int64)
    long = np.flatnonzero(runs.pages > 1)
    if not len(long):
        return begins
    vpn, size, at = runs.vpn[long], runs.pages[long], index[long]
    cuts: list[tuple[I64, I64]] = []

    def cut(which: Bools | slice, starts: I64, points: I64) -> None:
        among, offset = cuts_inside(starts[which], size[which], points)
        cuts.append((long[which][among], offset))

    in_tables = ~facts.hugetlb[runs.vma[long]]
    cuts.append(_table_cuts(long[in_tables], vpn[in_tables], size[in_tables], ptes_per_table(page_size)))
    cut(slice(None), vpn, huge.bounds())
    if dirty is not None:
        cut(slice(None), vpn, dirty.bounds())
    cut(at >= 0, at, apart)
    cut_run, cut_offset = (np.concatenate(columns) for columns in zip(*cuts, strict=True))
    if not len(cut_run):
        return begins
    order = np.lexsort((cut_offset, cut_run))
    cut_run, cut_offset = cut_run[order], cut_offset[order]
    other = np.append(True, (cut_run[1:] != cut_run[:-1]) | (cut_offset[1:] != cut_offset[:-1]))
    cut_run, cut_offset = cut_run[other], cut_offset[other]
    parts = 1 + np.bincount(cut_run, minlength=len(runs.vpn))
    run = np.repeat(begins[0], parts)
    offset = np.zeros(len(run), np.int64)
    offset[np.append(False, run[1:] == run[:-1])] = cut_offset
    return run, offset


def _table_cuts(run: I64, vpn: I64, size: npt.NDArray[np.int32], entries: int) -> tuple[I64, I64]:
    """Where runs go on to the next page-table page."""
    counts = (vpn + size - 1) // entries - vpn // entries
    among = np.repeat(np.arange(len(run)), counts)
    number = np.arange(len(among)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    return run[among], (vpn[among] // entries + number) * entries - vpn[among]


def _columns(
    runs: Runs,
    run: I64,
    offset: I64,
    index: I64,
    pages: Pages,
    folios: Folios,
    facts: VmaFacts,
    own: I32 | None,
    huge: Ranges,
    dirty: Ranges | None,
    page_size: int,
) -> Extents:
    """Rows that begin at `offset` of `run`; index: their place in `pages`, -1 for swap entries."""
    if len(run) != len(runs.vpn):
        runs = Runs(runs.vpn[run] + offset, runs.word[run], _sizes(runs, run, offset), runs.vma[run])
    rows, word, vma = len(runs.vpn), runs.word, runs.vma
    pfn = runs.frame
    swap = index < 0
    any_swap = bool(swap.any())
    if any_swap:
        pfn = np.where(swap, pfn >> SWAP_TYPE_BITS, pfn)
        index = np.where(swap, 0, index)
    pfn = pfn + offset
    counts, flags, order = pages.counts[index], pages.flags[index], folios.order[index]
    folio, mapped, mapcount = pfn, (counts > 0).astype(np.uint32), counts
    large = np.flatnonzero(order)
    if len(large):
        number = np.searchsorted(folios.place, index[large], side="right") - 1
        folio, mapcount = folio.copy(), mapcount.copy()
        folio[large] -= index[large] - folios.place[number]
        mapped[large], mapcount[large] = folios.mapped[number], folios.mapcount[number]
        # several flags stand only on the head (v6.1)
        flags[large] = pages.flags[folios.place[number]]
    file = word & PM_FILE != 0
    is_anon = flags & ANON != 0
    normal = (file | is_anon) & ~swap & (flags & ZERO_PAGE == 0)
    if facts.raw_frames.any():
        normal &= file | ~facts.raw_frames[vma]
    kind = np.full(rows, PAGE, np.uint8)
    if len(huge.start):
        whole = (order >= _order(ptes_per_table(page_size))) | (flags & NOPAGE != 0)
        kind[(huge.at(runs.vpn, 0) > 0) & whole] = PMD
    kind[facts.hugetlb[vma] | (flags & HUGE != 0)] = HUGETLB
    kind[~normal] = SPECIAL
    kind[swap] = SWAP
    if dirty is not None:
        is_dirty = normal & (dirty.at(runs.vpn, 0) > 0)
    elif facts.writes_back.any():
        is_dirty = normal & ~is_anon & facts.writes_back[vma] & (flags & DIRTY != 0)
    else:
        is_dirty = np.zeros(rows, bool)
    mappings = np.ones(rows, np.int32) if own is None else own[index]
    if not normal.all():
        counts, mapped, mapcount, mappings = (
            np.where(normal, column, 0) for column in (counts, mapped, mapcount, mappings)
        )
    if any_swap:
        folio, order, flags = (np.where(swap, 0, column) for column in (folio, order, flags))
    return Extents(
        vma=vma,
        vpn=runs.vpn,
        pages=runs.pages.astype(np.uint32),
        kind=kind,
        pfn=pfn,
        file=file,
        exclusive=word & PM_EXCLUSIVE != 0,
        soft_dirty=word & PM_SOFT_DIRTY != 0,
        uffd_wp=word & PM_UFFD_WP != 0,
        kpageflags=flags.astype(np.uint64, copy=False),
        mapcount=counts.astype(np.uint32),
        own=mappings.astype(np.uint32),
        dirty=is_dirty,
        folio=folio,
        order=order.astype(np.uint8, copy=False),
        folio_mapped=mapped.astype(np.uint32, copy=False),
        folio_mapcount=mapcount.astype(np.uint64, copy=False),
    )


def _sizes(runs: Runs, run: I64, offset: I64) -> npt.NDArray[np.int32]:
    """Pages of the rows: up to the next row of the run, or to its end."""
    end = runs.pages[run].astype(np.int64)
    following = np.flatnonzero(run[1:] == run[:-1])
    end[following] = offset[following + 1]
    return (end - offset).astype(np.int32)


def _order(pages: int) -> int:
    return pages.bit_length() - 1
