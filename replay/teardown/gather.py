# SPDX-License-Identifier: Apache-2.0
"""The machine, second part: pages enter the gather, batches fill up, and a full gather is flushed.

Names of arguments are those of `machine.py`.
"""

from __future__ import annotations

from replay.jit.compiled import I64, inline, seldom
from replay.teardown.algorithms import Entry
from replay.teardown.large_folios import in_runs
from replay.teardown.release import free_chunk
from replay.teardown.state import (
    ACTIVE,
    CHUNK,
    CHUNK_USED,
    CLEARED,
    DELAYED,
    FOLIO_END,
    FREED_TABLES,
    GATHER_FLUSHES,
    GATHER_PAGES_PEAK,
    GATHER_SLOTS,
    ORDER,
    PAGE_TABLE,
    PAGE_TABLES,
    PAGES,
    PFN,
    RANGE_NEXT,
    S_CHUNK,
    S_ENTRIES,
    S_EXTENT,
    S_OFFSET,
    S_PAGES,
    S_PENDING,
    SEGMENTS,
    TABLE_BATCHES,
    TLB_FLUSHES,
    USED,
    ExtentTable,
    FolioTable,
    Rules,
    SegmentTable,
)

ENTRY_PAGE_RUN, ENTRY_RANGE = int(Entry.PAGE_RUN), int(Entry.RANGE)


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
def gather_folios(
    e: ExtentTable, g: SegmentTable, r: Rules, c: I64, i: int, offset: int, waits: bool
) -> tuple[int, bool]:
    """Add the rest of an extent of whole folios, over as many batches as it takes -> (pages added, full)."""
    c[RANGE_NEXT] = -1
    total = e[i, PAGES] - offset
    if r.entry != ENTRY_RANGE and not (r.entry == ENTRY_PAGE_RUN and in_runs(e, r, i)):
        return gather_pages(g, r, c, i, offset, total, waits)
    slots = 2 if r.entry == ENTRY_PAGE_RUN else 1
    size = 1 << e[i, ORDER]
    added = 0
    while added < total:
        begin_chunk(r, c)
        left = batch_limit(r, c) - c[USED]
        # the batch is checked after each page: its last range has one
        folios = left - 1 if r.entry == ENTRY_RANGE else (left + 1) // 2
        folios = min(
            folios, (r.max_folios_per_free - c[CHUNK_USED] + slots - 1) // slots, (total - added) // size
        )
        in_folio = (offset + added) % size
        if in_folio == 0 and folios > 0:
            step = folios * size
        else:
            folios = 1
            step = 1 if left == 1 else size - in_folio
        tlb_remove(g, r, c, i, offset + added, step, folios, folios * slots, waits)
        added += step
        if batch_filled(r, c) and not next_batch(r, c):
            return added, True
    return added, False


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
        begin_chunk(r, c)
        room = min(batch_limit(r, c) - c[USED], r.max_folios_per_free - c[CHUNK_USED])
        step = min(pages - added, room)
        tlb_remove(g, r, c, extent, offset + added, step, step, step, waits)
        added += step
        if batch_filled(r, c) and not next_batch(r, c):
            return added, True
    return added, False


@inline
def begin_chunk(r: Rules, c: I64) -> None:
    """The next entry is the first of a chunk if the one under way is full."""
    if c[CHUNK_USED] >= r.max_folios_per_free:
        c[CHUNK] += 1
        c[CHUNK_USED] = 0


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
    if entries > 0:
        begin_chunk(r, c)
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


@seldom
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
