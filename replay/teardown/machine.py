# SPDX-License-Identifier: Apache-2.0
"""The numba machine: the replay over extents, each taken in constant time, equal to `reference.py`.

The gather is kept as *segments*: stretches of one extent that entered it together. A segment of n pages is
n entries, one entry, or pages that join the entry before. It belongs to one chunk of one batch, so that a
flush never has to cut it; batch and chunk boundaries are arithmetic. Pages that the address space maps once
need no state: whether their mapcount reaches zero is known from the extent. Large folios, pages mapped
several times, and pages that an mlock batch may get have theirs in the folios table.

In every function e is the extents table, f the folios table, g the gather, r the rules, and c the counts with
the registers of the gather, of the lruvec lock and of the mlock batch behind them (all in `state.py`). The
functions stand in the same order as in `reference.py`, under the same names. An address space may come to
`exit_mmap` in parts.
"""

from __future__ import annotations

from replay.jit.compiled import I64, compiled, inline
from replay.teardown.algorithms import PAGEVEC_SIZE, Entry, Mapcounts
from replay.teardown.state import (
    ACTIVE,
    ANON,
    ANON_RUNS,
    BEGINS,
    CHUNK,
    CHUNK_USED,
    CLEARED,
    DEFERRED_SPLIT_CALLS,
    DEFERRED_SPLIT_DEQUEUED,
    DEFERRED_SPLIT_QUEUED,
    DELAYED,
    DIRTY,
    F_ANON,
    F_HUGETLB,
    F_MAPCOUNT,
    F_MAPPED,
    F_MEMCG,
    F_ORDER,
    F_PARTIALLY_MAPPED,
    F_PMDS,
    F_QUEUED,
    F_REFS,
    F_SWAPCACHE,
    FILE_RUNS,
    FLAGS,
    FOLIO,
    FOLIO_END,
    FOLIOS_FREED,
    FREE_CALLS,
    FREED_TABLES,
    FREED_WHILE_MAPPED,
    GATHER_FLUSHES,
    GATHER_PAGES_PEAK,
    GATHER_SLOTS,
    HELD,
    HELD_MEMCG,
    HUGE_ZERO,
    HUGETLB,
    HUGETLB_PAGES,
    KIND,
    LARGE_MAPCOUNT_ATOMICS,
    LOCK_AGE,
    LOCKED,
    LOCKED_CALL,
    LRUVEC_LOCKS,
    MAPCOUNT,
    MAPCOUNT_ATOMICS,
    MARK,
    MARKER,
    MARKER_PTES,
    MEMCG,
    MLOCKED,
    NR_MAPPED_ATOMICS,
    OFF_LRU,
    ORDER,
    PAGE,
    PAGE_ROW,
    PAGE_TABLE,
    PAGE_TABLES,
    PAGES,
    PAGES_FREED,
    PFN,
    PMD,
    PMD_MAPPINGS,
    POSITION,
    PTES,
    RANGE_NEXT,
    REFCOUNT_ATOMICS,
    REFERENCES_DROPPED,
    REFERENCES_DROPPED_TWICE,
    RELEASE_CALLS,
    RELEASE_ENTRIES,
    RMAP_CALLS,
    RMAP_FLUSHES,
    RMAP_PAGES,
    S_CHUNK,
    S_ENTRIES,
    S_EXTENT,
    S_OFFSET,
    S_PAGES,
    S_PENDING,
    SEGMENTS,
    SPECIAL_PTES,
    SWAP,
    SWAP_ENTRIES,
    SWAPCACHE,
    SWAPCACHE_CHECKS,
    SWAPCACHE_FREES,
    TABLE,
    TABLE_BATCHES,
    TABLE_END,
    TLB_FLUSHES,
    USED,
    VPN,
    ExtentTable,
    FolioTable,
    Rules,
    SegmentTable,
)

ENTRY_PAGE_RUN, ENTRY_RANGE = int(Entry.PAGE_RUN), int(Entry.RANGE)
OF_PAGES, OF_RANGE, OF_NO_PAGE = int(Mapcounts.PAGES), int(Mapcounts.RANGE), int(Mapcounts.NO_PAGE)


# ---------------------------------------------------------------------- the walk


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
    return 2 * (r.batches + 1) + slots // r.max_folios_per_free + 4


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
        if in_runs(e, r, i):
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


# ---------------------------------------------------------------------- the gather


@inline
def gather_run(
    e: ExtentTable, g: SegmentTable, r: Rules, c: I64, i: int, offset: int, last: int, pages: int, waits: bool
) -> tuple[int, bool]:
    """Add a run of so many pages, up to extent `last`, as one entry or several -> (pages added, full)."""
    if r.entry == ENTRY_PAGE_RUN:
        slots = 2 if pages > 1 else 1
        entries = 1
        while i < last:
            tlb_remove(g, r, c, i, offset, e[i, PAGES] - offset, entries, slots, waits)
            entries = 0
            slots = 0
            offset = 0
            i += 1
        return pages, batch_filled(r, c) and not next_batch(r, c)
    done = 0
    full = False
    while i < last and not full:
        step, full = gather_extent(e, g, r, c, i, offset, waits)
        done += step
        offset = 0
        i += 1
    return done, full


@inline
def gather_extent(
    e: ExtentTable, g: SegmentTable, r: Rules, c: I64, i: int, offset: int, waits: bool
) -> tuple[int, bool]:
    """Add the rest of an extent as single pages or as ranges -> (pages added, full)."""
    if r.entry == ENTRY_RANGE and e[i, ORDER] > 0:
        return gather_range(e, g, r, c, i, offset, waits)
    c[RANGE_NEXT] = -1
    return gather_pages(g, r, c, i, offset, e[i, PAGES] - offset, waits)


@inline
def gather_range(
    e: ExtentTable, g: SegmentTable, r: Rules, c: I64, i: int, offset: int, waits: bool
) -> tuple[int, bool]:
    """The rest of an extent of a large folio, in the open range or in new ones -> (pages added, full)."""
    total = e[i, PAGES] - offset
    done = 0
    while done < total:
        if e[i, PFN] + offset + done == c[RANGE_NEXT]:
            tlb_remove(g, r, c, i, offset + done, total - done, 0, 0, waits)
            open_range(e, c, i, e[i, PAGES])
            return total, False
        # the batch is checked after each page: its last range has one
        step = 1 if c[USED] + 1 == batch_limit(r, c) else total - done
        tlb_remove(g, r, c, i, offset + done, step, 1, 1, waits)
        done += step
        open_range(e, c, i, offset + done)
        if batch_filled(r, c) and not next_batch(r, c):
            return done, True
    return done, False


@inline
def open_range(e: ExtentTable, c: I64, i: int, offset: int) -> None:
    """The last range ends before page `offset` of extent i: it stays open unless that is its folio's end."""
    following = e[i, PFN] + offset
    c[RANGE_NEXT] = following if following < e[i, FOLIO_END] else -1


@inline
def gather_pages(
    g: SegmentTable, r: Rules, c: I64, extent: int, offset: int, pages: int, waits: bool
) -> tuple[int, bool]:
    """Add pages as one entry each, over as many batches as it takes -> (pages added, full)."""
    added = 0
    while added < pages:
        if c[CHUNK_USED] >= r.max_folios_per_free:
            c[CHUNK] += 1
            c[CHUNK_USED] = 0
        room = min(batch_limit(r, c) - c[USED], r.max_folios_per_free - c[CHUNK_USED])
        step = min(pages - added, room)
        tlb_remove(g, r, c, extent, offset + added, step, step, step, waits)
        added += step
        if batch_filled(r, c) and not next_batch(r, c):
            return added, True
    return added, False


@inline
def tlb_remove(
    g: SegmentTable,
    r: Rules,
    c: I64,
    extent: int,
    offset: int,
    pages: int,
    entries: int,
    slots: int,
    waits: bool,
) -> None:
    """__tlb_remove_page_size(): add a segment that takes so many slots of the batch in use."""
    if entries > 0 and c[CHUNK_USED] >= r.max_folios_per_free:
        c[CHUNK] += 1
        c[CHUNK_USED] = 0
    n = c[SEGMENTS]
    g[n, S_EXTENT] = extent
    g[n, S_OFFSET] = offset
    g[n, S_PAGES] = pages
    g[n, S_ENTRIES] = entries
    g[n, S_CHUNK] = c[CHUNK]
    g[n, S_PENDING] = waits
    c[SEGMENTS] = n + 1
    c[USED] += slots
    c[CHUNK_USED] += slots
    c[GATHER_SLOTS] += slots


@inline
def batch_filled(r: Rules, c: I64) -> bool:
    """Whether an entry of the largest size no longer fits into the batch in use."""
    return c[USED] >= batch_limit(r, c)


@inline
def batch_limit(r: Rules, c: I64) -> int:
    """Slots at which the batch in use counts as filled: a page and its count must always fit."""
    slots = r.bundle if c[ACTIVE] == 0 else r.slots
    return slots - 1 if r.entry == ENTRY_PAGE_RUN else slots


@inline
def next_batch(r: Rules, c: I64) -> bool:
    """tlb_next_batch(): move on if a batch is left; a waiting rmap forbids it, but from the bundle."""
    if c[DELAYED] and c[ACTIVE] != 0:
        return False
    if c[ACTIVE] == r.batches:
        return False
    c[ACTIVE] += 1
    c[USED] = 0
    c[CHUNK] += 1
    c[CHUNK_USED] = 0
    c[RANGE_NEXT] = -1
    c[GATHER_PAGES_PEAK] = max(c[GATHER_PAGES_PEAK], c[ACTIVE] * r.batch_pages)
    return True


@inline
def free_pgtables(e: ExtentTable, f: FolioTable, g: SegmentTable, r: Rules, c: I64, page_tables: int) -> None:
    """free_pgtables(): every page-table page is an entry of the gather, or goes to RCU."""
    c[PAGE_TABLES] += page_tables
    if r.tables_by_rcu:
        remove_tables(r, c, page_tables)
        return
    left = page_tables
    while left > 0:
        c[FREED_TABLES] = 1
        added, full = gather_pages(g, r, c, PAGE_TABLE, 0, left, False)
        left -= added
        if full:
            force_flush(e, f, g, r, c)


@inline
def remove_tables(r: Rules, c: I64, page_tables: int) -> None:
    """tlb_remove_table() for each table: a full batch is handed to RCU after a TLB flush."""
    c[TABLE_BATCHES] += (page_tables + r.table_batch - 1) // r.table_batch
    for _ in range(page_tables // r.table_batch):
        c[FREED_TABLES] = 1
        tlb_flush(r, c)
    if page_tables % r.table_batch > 0:
        c[FREED_TABLES] = 1


@inline
def force_flush(e: ExtentTable, f: FolioTable, g: SegmentTable, r: Rules, c: I64) -> None:
    """tlb_flush_mmu()."""
    tlb_flush(r, c)
    flush_gather(e, f, g, r, c)


@inline
def tlb_flush(r: Rules, c: I64) -> None:
    """tlb_flush_mmu_tlbonly(): nothing, if nothing was cleared since the last one."""
    if c[FREED_TABLES] or (c[CLEARED] and not r.tlb_by_tables):
        c[TLB_FLUSHES] += 1
    c[CLEARED] = 0
    c[FREED_TABLES] = 0


@inline
def flush_gather(e: ExtentTable, f: FolioTable, g: SegmentTable, r: Rules, c: I64) -> None:
    """tlb_flush_mmu_free(): hand every batch over, in chunks, and begin anew with the bundle."""
    segments = c[SEGMENTS]
    c[GATHER_FLUSHES] += 1 if segments > 0 else 0
    first = 0
    while first < segments:
        last = first + 1
        while last < segments and g[last, S_CHUNK] == g[first, S_CHUNK]:
            last += 1
        free_chunk(e, f, g, r, c, first, last)
        first = last
    for name in (SEGMENTS, ACTIVE, USED, CHUNK, CHUNK_USED):
        c[name] = 0
    c[RANGE_NEXT] = -1


# ---------------------------------------------------------------------- rmap


@inline
def flush_rmaps(e: ExtentTable, f: FolioTable, g: SegmentTable, r: Rules, c: I64) -> None:
    """tlb_flush_rmaps(): the rmaps that wait for the end of the page-table page."""
    segments = c[SEGMENTS]
    first = 0
    if r.defers_rmap:
        c[RMAP_FLUSHES] += 1
        # pages that joined an entry made before the mark count as done: a defect of the series
        first = c[MARK]
        while first < segments and g[first, S_ENTRIES] == 0:
            first += 1
    elif not c[DELAYED]:
        c[RANGE_NEXT] = -1
        return
    while first < segments:
        last = first + 1
        while last < segments and g[last, S_ENTRIES] == 0:
            last += 1
        i = g[first, S_EXTENT]
        if g[first, S_PENDING] and (e[i, ORDER] == 0 or g[first, S_ENTRIES] > 1):
            remove_rmap_each(e, f, r, c, i, g[first, S_OFFSET], g[first, S_PAGES])
        elif g[first, S_PENDING]:
            remove_rmap_run(e, f, g, r, c, first, last)
        for s in range(first, last):
            g[s, S_PENDING] = False
        first = last
    c[DELAYED] = 0
    c[RANGE_NEXT] = -1


@inline
def remove_rmap_each(
    e: ExtentTable, f: FolioTable, r: Rules, c: I64, i: int, offset: int, pages: int
) -> None:
    """One call of page_remove_rmap(), or of what came after it, for each page."""
    c[RMAP_CALLS] += pages
    c[RMAP_PAGES] += pages
    large = e[i, ORDER] > 0
    if r.counts_pages or not large:
        c[MAPCOUNT_ATOMICS] += pages
    mapcounts = mapcounts_of(e, r, i)
    locked = e[i, FLAGS] & LOCKED and not r.drains_lru
    # calls that count alike are made at once
    step = pages
    if locked or (large and mapcounts != OF_PAGES):
        step = 1
    start = offset
    while start < offset + pages:
        unmapped, cleared = drop_mapcounts(e, f, i, start, step)
        if large:
            calls = count_large(f, r, c, e[i, FOLIO], mapcounts, unmapped, cleared)
            if calls > 0 and e[i, FLAGS] & ANON:
                deferred_split(f, r, c, e[i, FOLIO], calls)
        if locked:
            munlock_folio(f, r, c, e[i, FOLIO] if large else e[i, FOLIO] + start)
        start += step


@inline
def remove_rmap_run(
    e: ExtentTable, f: FolioTable, g: SegmentTable, r: Rules, c: I64, first: int, last: int
) -> None:
    """One call for the pages of one large folio in segments first to last."""
    i = g[first, S_EXTENT]
    folio = e[i, FOLIO]
    pages = 0
    unmapped = 0
    cleared = 0
    for s in range(first, last):
        pages += g[s, S_PAGES]
        of_segment = drop_mapcounts(e, f, g[s, S_EXTENT], g[s, S_OFFSET], g[s, S_PAGES])
        unmapped += of_segment[0]
        cleared += of_segment[1]
    c[RMAP_CALLS] += 1
    c[RMAP_PAGES] += pages
    if r.counts_pages:
        c[MAPCOUNT_ATOMICS] += pages
    calls = count_large(f, r, c, folio, mapcounts_of(e, r, i), unmapped, cleared)
    if calls > 0 and f[folio, F_ANON]:
        # unlike for single pages, one call of deferred_split_folio() for all that were unmapped
        deferred_split(f, r, c, folio, 1)
    if e[i, FLAGS] & LOCKED:
        munlock_folio(f, r, c, folio)


@inline
def count_large(
    f: FolioTable, r: Rules, c: I64, folio: int, mapcounts: int, unmapped: int, cleared: int
) -> int:
    """Count what an rmap call does to a large folio -> calls of deferred_split_folio() if it is anonymous.

    unmapped: pages of the call that nothing maps any more; cleared: that no PTE maps any more.
    """
    if mapcounts == OF_PAGES:
        c[NR_MAPPED_ATOMICS] += cleared
        return unmapped
    if mapcounts == OF_RANGE:
        c[NR_MAPPED_ATOMICS] += 1
        return 1 if unmapped > 0 and f[folio, F_MAPPED] > 0 else 0
    c[LARGE_MAPCOUNT_ATOMICS] += 1
    if mapcounts == OF_NO_PAGE:
        return 1 if 0 < f[folio, F_MAPCOUNT] < 1 << f[folio, F_ORDER] else 0
    c[NR_MAPPED_ATOMICS] += 1 if cleared > 0 else 0
    return 1 if unmapped > 0 and f[folio, F_MAPPED] > 0 else 0


@inline
def drop_mapcounts(e: ExtentTable, f: FolioTable, i: int, offset: int, pages: int) -> tuple[int, int]:
    """Lower the mapcounts of pages of one extent -> how many (are mapped no more, no more by a PTE)."""
    folio = e[i, FOLIO]
    if folio < 0:
        unmapped = pages if e[i, MAPCOUNT] == 1 else 0
        return unmapped, unmapped
    unmapped = 0
    if e[i, ORDER] == 0:
        for page in range(folio + offset, folio + offset + pages):
            f[page, F_MAPCOUNT] -= 1
            unmapped += f[page, F_MAPCOUNT] == 0
        return unmapped, unmapped
    if e[i, PAGE_ROW] < 0:
        unmapped = pages if e[i, MAPCOUNT] == 1 else 0
        cleared = unmapped
    else:
        cleared = 0
        first = e[i, PAGE_ROW] + offset
        for page in range(first, first + pages):
            f[page, F_MAPCOUNT] -= 1
            f[page, F_PMDS] -= e[i, KIND] == PMD
            unmapped += f[page, F_MAPCOUNT] == 0
            cleared += f[page, F_MAPCOUNT] == f[page, F_PMDS]
    f[folio, F_MAPPED] -= unmapped
    f[folio, F_MAPCOUNT] -= pages
    return unmapped, cleared


@inline
def deferred_split(f: FolioTable, r: Rules, c: I64, folio: int, calls: int) -> None:
    """deferred_split_folio(), called so often in a row, and what its callers check before it."""
    if r.splits_once and f[folio, F_PARTIALLY_MAPPED]:
        return
    c[DEFERRED_SPLIT_CALLS] += calls
    if f[folio, F_ORDER] < 2 or f[folio, F_SWAPCACHE]:
        return
    f[folio, F_PARTIALLY_MAPPED] = True
    if not f[folio, F_QUEUED]:
        f[folio, F_QUEUED] = True
        c[DEFERRED_SPLIT_QUEUED] += 1


@inline
def munlock_folio(f: FolioTable, r: Rules, c: I64, folio: int) -> None:
    """munlock_folio(): into the mlock batch, which holds a reference until it is emptied.

    Kernels that drain the batch before each release free no folio later by it.
    """
    if r.drains_lru:
        return
    f[folio, F_REFS] += 1
    c[MLOCKED] += 1
    c[MLOCKED + c[MLOCKED]] = folio
    if c[MLOCKED] >= PAGEVEC_SIZE or f[folio, F_ORDER] > 0:
        mlock_folio_batch(f, c)


@inline
def mlock_folio_batch(f: FolioTable, c: I64) -> None:
    """mlock_folio_batch(): empty the batch and drop its references, which may be the last ones."""
    for n in range(MLOCKED + 1, MLOCKED + 1 + c[MLOCKED]):
        folio = c[n]
        f[folio, F_REFS] -= 1
        if f[folio, F_REFS] == 0:
            free_folio(f, c, folio)
    c[MLOCKED] = 0


# ---------------------------------------------------------------------- release


@inline
def free_chunk(
    e: ExtentTable, f: FolioTable, g: SegmentTable, r: Rules, c: I64, first: int, last: int
) -> None:
    """free_pages_and_swap_cache() for segments first to last: the swap cache first, then the references."""
    c[FREE_CALLS] += 1
    entries = 0
    for s in range(first, last):
        entries += g[s, S_ENTRIES]
        if g[s, S_EXTENT] != PAGE_TABLE:
            free_swap_cache(e, f, c, g[s, S_EXTENT], g[s, S_OFFSET], g[s, S_PAGES])
    c[SWAPCACHE_CHECKS] += entries
    c[RELEASE_ENTRIES] += entries
    c[REFCOUNT_ATOMICS] += entries
    c[RELEASE_CALLS] += (entries + r.release_batch - 1) // r.release_batch
    c[HELD] = 0
    c[POSITION] = 0
    c[LOCKED_CALL] = -1
    for s in range(first, last):
        c[REFERENCES_DROPPED] += g[s, S_PAGES]
        i = g[s, S_EXTENT]
        if i == PAGE_TABLE:
            pass_entries(r, c, g[s, S_ENTRIES])
        elif e[i, FOLIO] < 0:
            release_alike(e, r, c, i, g[s, S_PAGES])
        elif e[i, ORDER] == 0:
            for page in range(e[i, FOLIO] + g[s, S_OFFSET], e[i, FOLIO] + g[s, S_OFFSET] + g[s, S_PAGES]):
                release_folio(f, r, c, page, 1, 1)
        else:
            release_folio(f, r, c, e[i, FOLIO], g[s, S_ENTRIES], g[s, S_PAGES])


@inline
def free_swap_cache(e: ExtentTable, f: FolioTable, c: I64, i: int, offset: int, pages: int) -> None:
    """free_swap_cache() for pages of one extent: folios that are no longer mapped leave the swap cache."""
    if not e[i, FLAGS] & SWAPCACHE:
        return
    folio = e[i, FOLIO]
    if folio < 0:
        c[SWAPCACHE_FREES] += pages if e[i, MAPCOUNT] == 1 else 0
        return
    if e[i, ORDER] == 0:
        first, last = folio + offset, folio + offset + pages
    else:
        first, last = folio, folio + 1
    for n in range(first, last):
        if f[n, F_SWAPCACHE] and f[n, F_MAPCOUNT] == 0:
            c[SWAPCACHE_FREES] += 1
            f[n, F_SWAPCACHE] = False
            f[n, F_REFS] -= 1 << f[n, F_ORDER]


@inline
def release_alike(e: ExtentTable, r: Rules, c: I64, i: int, pages: int) -> None:
    """References of order-0 pages that this address space maps once: all are freed or none."""
    waits = e[i, FLAGS] & OFF_LRU and not r.drains_lru
    if waits or not (e[i, FLAGS] & ANON and e[i, MAPCOUNT] == 1):
        pass_entries(r, c, pages)
        return
    c[FOLIOS_FREED] += pages
    c[PAGES_FREED] += pages
    if not r.relocks:
        lock_calls(r, c, c[POSITION], pages, e[i, MEMCG])
        c[POSITION] += pages
        return
    left = pages
    while left > 0:
        room = r.release_batch - c[POSITION] % r.release_batch
        step = min(left, room)
        if room == r.release_batch:
            c[HELD] = 0
        relock(r, c, step, e[i, MEMCG])
        c[POSITION] += step
        left -= step


@inline
def release_folio(f: FolioTable, r: Rules, c: I64, folio: int, entries: int, pages: int) -> None:
    """So many entries of one folio, `pages` references; the last of them may free it."""
    pass_entries(r, c, entries)
    f[folio, F_REFS] -= pages
    if f[folio, F_REFS] < 0:
        c[REFERENCES_DROPPED_TWICE] += min(pages, -f[folio, F_REFS])
    if f[folio, F_REFS] != 0:
        return
    lru = not f[folio, F_HUGETLB]
    if not r.relocks:
        if lru:
            lock_calls(r, c, c[POSITION] - 1, 1, f[folio, F_MEMCG])
        else:
            # free_huge_folio() must not be called under the lock: the next folio takes it again
            c[LOCKED_CALL] = min(c[LOCKED_CALL], (c[POSITION] - 1) // r.release_batch - 1)
    elif f[folio, F_ORDER] > 0:
        c[HELD] = 0
        c[LRUVEC_LOCKS] += lru
    elif not c[HELD] or c[HELD_MEMCG] != f[folio, F_MEMCG]:
        c[HELD] = 1
        c[HELD_MEMCG] = f[folio, F_MEMCG]
        c[LOCK_AGE] = 0
        c[LRUVEC_LOCKS] += 1
    free_folio(f, c, folio)


@inline
def relock(r: Rules, c: I64, entries: int, memcg: int) -> None:
    """Entries of one release call that each free an order-0 page, where the lock is dropped now and then.

    The lock of another cgroup's lruvec is dropped first: folio_lruvec_relock_irqsave().
    """
    if c[HELD] and c[HELD_MEMCG] == memcg:
        age = c[LOCK_AGE] + entries
        c[LRUVEC_LOCKS] += age // r.lock_batch
        c[LOCK_AGE] = age % r.lock_batch
    else:
        c[LRUVEC_LOCKS] += (entries + r.lock_batch - 1) // r.lock_batch
        c[HELD] = 1
        c[HELD_MEMCG] = memcg
        c[LOCK_AGE] = (entries - 1) % r.lock_batch


@inline
def pass_entries(r: Rules, c: I64, entries: int) -> None:
    """Go on by so many entries: the lock is dropped at its age, and at the end of a release call."""
    before = (c[POSITION] - 1) // r.release_batch
    c[POSITION] += entries
    if r.relocks and c[HELD]:
        c[LOCK_AGE] += entries
        if c[LOCK_AGE] >= r.lock_batch or (c[POSITION] - 1) // r.release_batch != before:
            c[HELD] = 0


@inline
def lock_calls(r: Rules, c: I64, position: int, entries: int, memcg: int) -> None:
    """Entries from `position` on free LRU folios of one memory cgroup.

    Each release call takes the lock at the first of them, and again where the lruvec changes.
    """
    if position // r.release_batch == c[LOCKED_CALL] and c[HELD_MEMCG] != memcg:
        c[LRUVEC_LOCKS] += 1
    c[HELD_MEMCG] = memcg
    first = max(position // r.release_batch, c[LOCKED_CALL] + 1)
    last = (position + entries - 1) // r.release_batch
    c[LRUVEC_LOCKS] += max(last - first + 1, 0)
    c[LOCKED_CALL] = max(last, c[LOCKED_CALL])


@inline
def free_folio(f: FolioTable, c: I64, folio: int) -> None:
    """A folio whose last reference is gone."""
    if f[folio, F_QUEUED]:
        f[folio, F_QUEUED] = False
        c[DEFERRED_SPLIT_DEQUEUED] += 1
    if not f[folio, F_HUGETLB]:
        c[FOLIOS_FREED] += 1
        c[PAGES_FREED] += 1 << f[folio, F_ORDER]
        c[FREED_WHILE_MAPPED] += f[folio, F_MAPCOUNT]


# ---------------------------------------------------------------------- what the algorithm takes together


@inline
def mapcounts_of(e: ExtentTable, r: Rules, i: int) -> int:
    """How the mappings of a folio are counted: folio_remove_rmap_range() is for runs and ranges only."""
    if r.mapcounts == OF_RANGE and not (r.defers_rmap or in_runs(e, r, i)):
        return OF_PAGES
    return r.mapcounts


@inline
def in_runs(e: ExtentTable, r: Rules, i: int) -> bool:
    """Whether PTEs that map a folio one after the other are taken together."""
    return e[i, ORDER] > 0 and r.runs & (ANON_RUNS if e[i, FLAGS] & ANON else FILE_RUNS) != 0
