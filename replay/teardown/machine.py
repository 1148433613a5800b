# SPDX-License-Identifier: Apache-2.0
"""The numba machine: the replay over extents, each taken in constant time, equal to `reference.py`.

The gather is kept as *segments*: stretches of one extent that entered it together. A segment of n pages is
n entries, one entry, or pages that join the entry before. It belongs to one chunk of one batch, so that a
flush never has to cut it; batch and chunk boundaries are arithmetic. Pages that the address space maps once
need no state: whether their mapcount reaches zero is known from the extent. So it is with large folios that
one extent maps whole: any number of them may be one extent. Other large folios, pages mapped several times,
and pages that an mlock batch may get have their state in the folios table.

In every function e is the extents table, f the folios table, g the gather, r the rules, and c the counts with
the registers of the gather, of the lruvec lock and of the mlock batch behind them (all in `state.py`). An
address space may come to `exit_mmap` in parts.

The machine is this file, which walks the page tables, then `gather.py`, `rmap.py` and `release.py`. Their
functions stand in the same order as in `reference.py`, under the same names.
"""

from __future__ import annotations

from replay.jit.compiled import I64, compiled, inline
from replay.teardown.algorithms import Entry
from replay.teardown.gather import (
    batch_filled,
    flush_gather,
    force_flush,
    free_pgtables,
    gather_extent,
    gather_folios,
    gather_run,
    next_batch,
    open_range,
    tlb_flush,
    tlb_remove,
)
from replay.teardown.large_folios import are_whole_folios, folios_in, in_runs
from replay.teardown.rmap import (
    deferred_split,
    drop_mapcounts,
    flush_rmaps,
    munlock_folio,
    remove_rmap_each,
    remove_rmap_folios,
    remove_rmap_run,
)
from replay.teardown.state import (
    BEGINS,
    CLEARED,
    DELAYED,
    DIRTY,
    F_ANON,
    F_MAPCOUNT,
    F_ORDER,
    FLAGS,
    FOLIO,
    HUGE_ZERO,
    HUGETLB,
    HUGETLB_PAGES,
    KIND,
    LOCKED,
    MAPCOUNT_ATOMICS,
    MARK,
    MARKER,
    MARKER_PTES,
    PAGE,
    PAGES,
    PFN,
    PMD,
    PMD_MAPPINGS,
    PTES,
    RANGE_NEXT,
    REFCOUNT_ATOMICS,
    SEGMENTS,
    SPECIAL_PTES,
    SWAP,
    SWAP_ENTRIES,
    TABLE,
    TABLE_END,
    VPN,
    ExtentTable,
    FolioTable,
    Rules,
    SegmentTable,
)

ENTRY_RANGE = int(Entry.RANGE)


@inline
def rules_of(rules: I64) -> Rules:
    """The fields of `Rules`, in order, as a `Rules`."""
    return Rules(
        rules[0],  # entry
        rules[1],  # runs
        rules[2] != 0,  # delayed_rmap
        rules[3] != 0,  # relocks
        rules[4],  # release_batch
        rules[5],  # slots
        rules[6],  # batches
        rules[7],  # table_batch
        rules[8],  # queued_order
        rules[9],  # mapcounts
        rules[10],  # alike
        rules[11],  # run_references
        rules[12],  # bundle
        rules[13],  # batch_pages
        rules[14],  # max_folios_per_free
        rules[15],  # lock_batch
        rules[16] != 0,  # defers_rmap
        rules[17] != 0,  # counts_pages
        rules[18] != 0,  # splits_once
        rules[19] != 0,  # drains_lru
        rules[20] != 0,  # tables_by_rcu
        rules[21] != 0,  # tlb_by_tables
    )


def most_segments(r: Rules) -> int:
    """Segments of one flush beside one per extent: one for each end of a batch or chunk, or range there."""
    slots = r.bundle + r.batches * r.slots
    return 3 * (r.batches + 1) + slots // r.max_folios_per_free + 4


@compiled
def exit_mmap(
    e: ExtentTable,
    f: FolioTable,
    g: SegmentTable,
    rules: I64,
    c: I64,
    start: int,
    is_complete: int,
    page_tables: int,
) -> int:
    """Zap the extents from `start` on, and end the teardown if they are the last -> how many there were.

    rules: the fields of `Rules`. page_tables: those that free_pgtables() finds. The rest as in `unmap_vmas`.
    """
    r = rules_of(rules)
    unmap_vmas(e, f, g, r, c, start)
    if is_complete:
        finish(e, f, g, r, c, page_tables)
    return len(e) - start


@inline
def begin(c: I64) -> None:
    """Counts and registers before the first entry."""
    c[:] = 0
    c[RANGE_NEXT] = -1


@inline
def unmap_vmas(e: ExtentTable, f: FolioTable, g: SegmentTable, r: Rules, c: I64, start: int) -> None:
    """Zap the extents from `start` on: whole page-table pages and huge mappings.

    e: extents. f: folios, changed. g: the gather. r: `Rules`. c: counts and registers,
    int64, with the mlock batch behind them: how many folios, then their rows.
    """
    i = start
    while i < len(e):
        if e[i, KIND] == PMD or e[i, KIND] == HUGETLB:
            i = zap_huge(e, f, g, r, c, i)
        elif e[i, KIND] == HUGE_ZERO:
            c[SPECIAL_PTES] += 1
            c[CLEARED] = 1
            i += 1
        else:
            i = zap_pte_range(e, f, g, r, c, i)


@inline
def finish(e: ExtentTable, f: FolioTable, g: SegmentTable, r: Rules, c: I64, page_tables: int) -> None:
    """What exit_mmap() does behind unmap_vmas(). page_tables: those that free_pgtables() finds."""
    free_pgtables(e, f, g, r, c, page_tables)
    force_flush(e, f, g, r, c)


@inline
def zap_huge(e: ExtentTable, f: FolioTable, g: SegmentTable, r: Rules, c: I64, first: int) -> int:
    """One PMD mapping or huge page -> the extent behind it: one rmap removal, one entry, one reference."""
    folio = e[first, FOLIO]
    unmapped = 0
    pages = 0
    i = first
    while i == first or (i < len(e) and e[i, KIND] == e[first, KIND] and not e[i, FLAGS] & BEGINS):
        unmapped += drop_mapcounts(e, f, i, 0, e[i, PAGES])[0]
        pages += e[i, PAGES]
        i += 1
    c[CLEARED] = 1
    if e[first, KIND] == PMD:
        c[PMD_MAPPINGS] += 1
        partially = 0 < unmapped < pages
        if not r.counts_pages:
            c[MAPCOUNT_ATOMICS] += 1
            partially = 0 < f[folio, F_MAPCOUNT] < 1 << f[folio, F_ORDER]
        if f[folio, F_ANON] and partially:
            deferred_split(f, r, c, folio, 1)
        if e[first, FLAGS] & LOCKED:
            munlock_folio(f, r, c, folio)
    else:
        c[HUGETLB_PAGES] += 1
    tlb_remove(g, r, c, first, 0, 1, 1, 1, False)
    if r.entry == ENTRY_RANGE:
        open_range(e, c, first, 1)
    if batch_filled(r, c) and not next_batch(r, c):
        force_flush(e, f, g, r, c)
    return i


@inline
def zap_pte_range(e: ExtentTable, f: FolioTable, g: SegmentTable, r: Rules, c: I64, first: int) -> int:
    """One page-table page, restarted behind the entry that filled the gather -> the extent behind it."""
    end = first
    while end < len(e) and e[end, TABLE] == e[first, TABLE]:
        end += 1
    i = first
    offset = 0
    while True:
        c[MARK] = c[SEGMENTS]
        i, offset, flush, full = zap_pass(e, f, g, r, c, i, offset, end)
        if flush or full:
            tlb_flush(r, c)
        flush_rmaps(e, f, g, r, c)
        if flush or full:
            flush_gather(e, f, g, r, c)
        if not full or next_vpn(e, i, offset) == e[first, TABLE_END]:
            return end


@inline
def next_vpn(e: ExtentTable, i: int, offset: int) -> int:
    """The page behind the last one that was zapped."""
    if offset > 0:
        return e[i, VPN] + offset
    return e[i - 1, VPN] + e[i - 1, PAGES]


@inline
def zap_pass(
    e: ExtentTable, f: FolioTable, g: SegmentTable, r: Rules, c: I64, i: int, offset: int, end: int
) -> tuple[int, int, bool, bool]:
    """Entries from page `offset` of extent i on, until the gather is full -> (extent, page, flush, full)."""
    flush = False
    while i < end:
        if e[i, KIND] != PAGE:
            zap_other(e, c, i)
            i += 1
            continue
        if are_whole_folios(e, i):
            done, full = zap_folios(e, g, r, c, i, offset)
            dirty = e[i, FLAGS] & DIRTY != 0
        elif in_runs(e, r, i):
            done, full, dirty = zap_run(e, f, g, r, c, i, offset, end)
        else:
            done, full = zap_pages(e, f, g, r, c, i, offset)
            dirty = e[i, FLAGS] & DIRTY != 0
        flush |= dirty
        c[PTES] += done
        c[CLEARED] = 1
        while done > 0:
            step = min(done, e[i, PAGES] - offset)
            done -= step
            offset += step
            if offset == e[i, PAGES]:
                i += 1
                offset = 0
        if full:
            return i, offset, flush, True
    return i, offset, flush, False


@inline
def zap_other(e: ExtentTable, c: I64, i: int) -> None:
    """Entries without a page that has an rmap."""
    if e[i, KIND] == SWAP:
        c[SWAP_ENTRIES] += e[i, PAGES]
    elif e[i, KIND] == MARKER:
        c[MARKER_PTES] += e[i, PAGES]
    else:
        c[SPECIAL_PTES] += e[i, PAGES]
        c[CLEARED] = 1


@inline
def continues_run(e: ExtentTable, r: Rules, i: int) -> bool:
    """Whether extent i goes on with the run that the extent before it is in."""
    return (
        e[i, KIND] == PAGE
        and e[i, FOLIO] == e[i - 1, FOLIO]
        and e[i, VPN] == e[i - 1, VPN] + e[i - 1, PAGES]
        and e[i, PFN] == e[i - 1, PFN] + e[i - 1, PAGES]
        and (e[i, FLAGS] & r.alike) == (e[i - 1, FLAGS] & r.alike)
    )


@inline
def zap_pages(
    e: ExtentTable, f: FolioTable, g: SegmentTable, r: Rules, c: I64, i: int, offset: int
) -> tuple[int, bool]:
    """The rest of an extent, each page for itself -> (pages done, full)."""
    waits = r.defers_rmap
    if r.delayed_rmap and e[i, FLAGS] & DIRTY != 0:
        c[DELAYED] = 1
        waits = True
    done, full = gather_extent(e, g, r, c, i, offset, waits)
    if not waits:
        remove_rmap_each(e, f, r, c, i, offset, done)
    return done, full


@inline
def zap_folios(e: ExtentTable, g: SegmentTable, r: Rules, c: I64, i: int, offset: int) -> tuple[int, bool]:
    """The rest of an extent of whole folios, each page or each folio for itself -> (pages done, full)."""
    waits = r.defers_rmap
    if r.delayed_rmap and e[i, FLAGS] & DIRTY != 0:
        c[DELAYED] = 1
        waits = True
    done, full = gather_folios(e, g, r, c, i, offset, waits)
    runs = in_runs(e, r, i)
    if runs:
        c[REFCOUNT_ATOMICS] += r.run_references * folios_in(e, i, offset, done)
    if not waits:
        remove_rmap_folios(e, r, c, i, offset, done, runs)
    return done, full


@inline
def zap_run(
    e: ExtentTable, f: FolioTable, g: SegmentTable, r: Rules, c: I64, i: int, offset: int, end: int
) -> tuple[int, bool, bool]:
    """A run of one large folio, over several extents maybe -> (pages done, full, dirty)."""
    first = c[SEGMENTS]
    last = i + 1
    pages = e[i, PAGES] - offset
    dirty = e[i, FLAGS] & DIRTY != 0
    while last < end and continues_run(e, r, last):
        pages += e[last, PAGES]
        dirty |= e[last, FLAGS] & DIRTY != 0
        last += 1
    waits = r.delayed_rmap and dirty
    if waits:
        c[DELAYED] = 1
    c[REFCOUNT_ATOMICS] += r.run_references
    done, full = gather_run(e, g, r, c, i, offset, last, pages, waits)
    if not waits:
        remove_rmap_run(e, f, g, r, c, first, c[SEGMENTS])
    return done, full, dirty
