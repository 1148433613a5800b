"""The numba machine: the replay over extents, each taken in constant time, equal to `reference.py`.

The gather is kept as *segments*: stretches of one extent that entered it together. A segment of n pages is
n entries, one entry, or pages that join the entry before. It belongs to one piece of one batch, so that a
flush never has to cut it; batch and piece boundaries are arithmetic. Pages that the address space maps once
need no state: whether their mapcount reaches zero is known from the extent. Large folios, and pages mapped
several times, have theirs in the folios table.

In every function e is the extents table, f the folios table, g the gather, r the rules, and c the counts with
the registers of the gather and of the lruvec lock behind them (all in `state.py`).
"""

from __future__ import annotations

import numpy as np

from replay.jit.compiled import I64, I64s, compiled, inline
from replay.teardown.algorithms import BUNDLE_SLOTS, MAX_FOLIOS_PER_FREE, Entry, Rmap
from replay.teardown.state import (
    ACTIVE,
    ANON,
    BEGINS,
    CONTIGUOUS,
    DEFERRED_SPLIT_CALLS,
    DEFERRED_SPLIT_DEQUEUED,
    DEFERRED_SPLIT_QUEUED,
    DELAYED,
    DIRTY,
    F_ANON,
    F_HUGETLB,
    F_MAPCOUNT,
    F_MAPPED,
    F_MARKED,
    F_ORDER,
    F_PMDS,
    F_QUEUED,
    F_REFS,
    F_SWAPCACHE,
    FLAGS,
    FOLIO,
    FOLIO_END,
    FOLIOS_FREED,
    FREE_CALLS,
    FREED_WHILE_MAPPED,
    GATHER_FLUSHES,
    GATHER_PAGES_PEAK,
    GATHER_SLOTS,
    HELD,
    HUGE_ZERO,
    HUGETLB,
    HUGETLB_PAGES,
    KIND,
    LARGE_MAPCOUNT_ATOMICS,
    LOCK_AGE,
    LOCKED_CALL,
    LRUVEC_LOCKS,
    MAPCOUNT,
    MAPCOUNT_ATOMICS,
    MARK,
    NR_MAPPED_ATOMICS,
    ORDER,
    PAGE,
    PAGE_ROW,
    PAGE_TABLE,
    PAGE_TABLES,
    PAGES,
    PAGES_FREED,
    PFN,
    PIECE,
    PIECE_USED,
    PMD,
    PMD_MAPPINGS,
    POSITION,
    PTES,
    RANGE_NEXT,
    REFCOUNT_ATOMICS,
    REFERENCES_DROPPED,
    REFERENCES_DROPPED_TWICE,
    REGISTERS,
    RELEASE_CALLS,
    RELEASE_ENTRIES,
    RMAP_CALLS,
    RMAP_FLUSHES,
    RMAP_PAGES,
    S_ENTRIES,
    S_EXTENT,
    S_OFFSET,
    S_PAGES,
    S_PENDING,
    S_PIECE,
    SEGMENT_COLUMNS,
    SEGMENT_RESERVE,
    SEGMENTS,
    SPECIAL_PTES,
    SWAP,
    SWAP_ENTRIES,
    SWAPCACHE,
    SWAPCACHE_CHECKS,
    SWAPCACHE_FREES,
    TABLE,
    TABLE_END,
    TLB_FLUSHES,
    UFFD_WP,
    USED,
    VPN,
    Rules,
)

ENTRY_PAGE_RUN, ENTRY_RANGE = int(Entry.PAGE_RUN), int(Entry.RANGE)
RMAP_ANON_RUN, RMAP_RUN, RMAP_RANGE = int(Rmap.ANON_RUN), int(Rmap.RUN), int(Rmap.RANGE)

ALIKE = UFFD_WP | CONTIGUOUS
"""What the entries of a run have in common: bits of FLAGS."""

LOCK_BATCH = 32
"""Entries after which release_pages() drops the lruvec lock: SWAP_CLUSTER_MAX."""


def exit_mmap(e: I64s, f: I64s, r: Rules, page_tables: int) -> I64:
    """Tear down one address space -> int64, shape (len(COUNTS),).

    e: extents, int64, shape (extents, EXTENT_COLUMNS). f: folios, int64, shape (folios, FOLIO_COLUMNS),
    changed. r: `Rules`. page_tables: page-table pages that free_pgtables() puts through the gather.
    """
    g = np.empty((len(e) + SEGMENT_RESERVE, SEGMENT_COLUMNS), np.int64)
    c = np.zeros(REGISTERS, np.int64)
    tear_down(e, f, g, c, np.array(r, np.int64), page_tables)
    return c[:SEGMENTS]


@compiled
def tear_down(e: I64s, f: I64s, g: I64s, c: I64, rules: I64, page_tables: int) -> int:
    """`exit_mmap` with a gather g to use, and counts c of zeros to fill in; rules: the fields of `Rules`.

    Returns how many extents there were.
    """
    r = Rules(
        rules[0],
        rules[1],
        rules[2] != 0,
        rules[3] != 0,
        rules[4],
        rules[5],
        rules[6],
        rules[7],
        rules[8],
    )
    c[RANGE_NEXT] = -1
    i = 0
    while i < len(e):
        if e[i, KIND] == PMD or e[i, KIND] == HUGETLB:
            i = zap_huge(e, f, g, r, c, i)
        elif e[i, KIND] == HUGE_ZERO:
            c[SPECIAL_PTES] += 1
            i += 1
        else:
            i = zap_table(e, f, g, r, c, i)
    free_page_tables(e, f, g, r, c, page_tables)
    c[TLB_FLUSHES] += 1
    flush_gather(e, f, g, r, c)
    return i


@inline
def zap_huge(e: I64s, f: I64s, g: I64s, r: Rules, c: I64, first: int) -> int:
    """One PMD mapping or huge page -> the extent behind it: one rmap removal, one entry, one reference."""
    folio = e[first, FOLIO]
    unmapped = 0
    pages = 0
    i = first
    while i == first or (i < len(e) and e[i, KIND] == e[first, KIND] and not e[i, FLAGS] & BEGINS):
        unmapped += drop_mapcounts(e, f, i, 0, e[i, PAGES])[0]
        pages += e[i, PAGES]
        i += 1
    if e[first, KIND] == PMD:
        c[PMD_MAPPINGS] += 1
        marked = r.rmap == RMAP_RUN and f[folio, F_MARKED]
        if f[folio, F_ANON] and 0 < unmapped < pages and not marked:
            deferred_split(f, c, folio, 1)
    else:
        c[HUGETLB_PAGES] += 1
    push(g, c, first, 0, 1, 1, 1, False)
    if r.entry == ENTRY_RANGE:
        open_range(e, c, first, 1)
    if batch_filled(r, c) and not next_batch(r, c):
        force_flush(e, f, g, r, c)
    return i


# ---------------------------------------------------------------------- one page-table page


@inline
def zap_table(e: I64s, f: I64s, g: I64s, r: Rules, c: I64, first: int) -> int:
    """zap_pte_range() for one page-table page, restarted behind the entry that filled the gather."""
    end = first
    while end < len(e) and e[end, TABLE] == e[first, TABLE]:
        end += 1
    i = first
    offset = 0
    while True:
        c[MARK] = c[SEGMENTS]
        i, offset, flush, full = zap_pass(e, f, g, r, c, i, offset, end)
        if flush or full:
            c[TLB_FLUSHES] += 1
        flush_rmaps(e, f, g, r, c)
        if flush or full:
            flush_gather(e, f, g, r, c)
        if not full or next_vpn(e, i, offset) == e[first, TABLE_END]:
            return end


@inline
def next_vpn(e: I64s, i: int, offset: int) -> int:
    """The page behind the last one that was zapped."""
    if offset > 0:
        return e[i, VPN] + offset
    return e[i - 1, VPN] + e[i - 1, PAGES]


@inline
def zap_pass(
    e: I64s, f: I64s, g: I64s, r: Rules, c: I64, i: int, offset: int, end: int
) -> tuple[int, int, bool, bool]:
    """Entries from page `offset` of extent i on, until the gather is full -> (extent, page, flush, full)."""
    flush = False
    while i < end:
        if e[i, KIND] != PAGE:
            c[SWAP_ENTRIES if e[i, KIND] == SWAP else SPECIAL_PTES] += e[i, PAGES]
            i += 1
            continue
        large = e[i, ORDER] > 0
        if large and r.rmap == RMAP_RANGE:
            done, full = zap_range(e, g, r, c, i, offset)
            flush |= e[i, FLAGS] & DIRTY != 0
        elif large and (r.rmap == RMAP_RUN or (r.rmap == RMAP_ANON_RUN and e[i, FLAGS] & ANON)):
            done, full, dirty = zap_run(e, f, g, r, c, i, offset, end)
            flush |= dirty
        else:
            done, full = zap_pages(e, f, g, r, c, i, offset)
            flush |= e[i, FLAGS] & DIRTY != 0
        c[PTES] += done
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
def zap_pages(e: I64s, f: I64s, g: I64s, r: Rules, c: I64, i: int, offset: int) -> tuple[int, bool]:
    """The rest of an extent, page by page -> (pages done, full)."""
    waits = r.rmap == RMAP_RANGE or (r.delayed_rmap and e[i, FLAGS] & DIRTY != 0)
    if waits and r.rmap != RMAP_RANGE:
        c[DELAYED] = 1
    c[RANGE_NEXT] = -1
    done, full = gather_pages(g, r, c, i, offset, e[i, PAGES] - offset, waits)
    if not waits:
        remove_rmap_each(e, f, c, i, offset, done)
    return done, full


@inline
def zap_run(
    e: I64s, f: I64s, g: I64s, r: Rules, c: I64, i: int, offset: int, end: int
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
    if r.rmap == RMAP_ANON_RUN:
        c[REFCOUNT_ATOMICS] += 2
        done = 0
        full = False
        while i < last and not full:
            step, full = gather_pages(g, r, c, i, offset, e[i, PAGES] - offset, False)
            done += step
            offset = 0
            i += 1
        remove_rmap_batch(e, f, g, r, c, first, c[SEGMENTS])
        return done, full, dirty
    waits = r.delayed_rmap and dirty
    if waits:
        c[DELAYED] = 1
    slots = 2 if pages > 1 else 1
    while i < last:
        push(g, c, i, offset, e[i, PAGES] - offset, 1 if c[SEGMENTS] == first else 0, slots, waits)
        slots = 0
        offset = 0
        i += 1
    if not waits:
        remove_rmap_batch(e, f, g, r, c, first, c[SEGMENTS])
    return pages, batch_filled(r, c) and not next_batch(r, c), dirty


@inline
def continues_run(e: I64s, r: Rules, i: int) -> bool:
    """Whether extent i goes on with the run that the extent before it is in."""
    return (
        e[i, KIND] == PAGE
        and e[i, VPN] == e[i - 1, VPN] + e[i - 1, PAGES]
        and e[i, PFN] == e[i - 1, PFN] + e[i - 1, PAGES]
        and e[i, FOLIO] == e[i - 1, FOLIO]
        and (r.rmap == RMAP_ANON_RUN or (e[i, FLAGS] & ALIKE) == (e[i - 1, FLAGS] & ALIKE))
    )


@inline
def zap_range(e: I64s, g: I64s, r: Rules, c: I64, i: int, offset: int) -> tuple[int, bool]:
    """The rest of an extent of a large folio, in the open range or in new ones -> (pages done, full)."""
    total = e[i, PAGES] - offset
    done = 0
    while done < total:
        if e[i, PFN] + offset + done == c[RANGE_NEXT]:
            push(g, c, i, offset + done, total - done, 0, 0, True)
            open_range(e, c, i, e[i, PAGES])
            return total, False
        # the batch is checked after each page: its last range has one
        step = 1 if c[USED] + 1 == batch_limit(r, c) else total - done
        push(g, c, i, offset + done, step, 1, 1, True)
        done += step
        open_range(e, c, i, offset + done)
        if batch_filled(r, c) and not next_batch(r, c):
            return done, True
    return done, False


@inline
def open_range(e: I64s, c: I64, i: int, offset: int) -> None:
    """The last range ends before page `offset` of extent i: it stays open unless that is its folio's end."""
    following = e[i, PFN] + offset
    c[RANGE_NEXT] = following if following < e[i, FOLIO_END] else -1


# ---------------------------------------------------------------------- the gather


@inline
def gather_pages(
    g: I64s, r: Rules, c: I64, extent: int, offset: int, pages: int, pending: bool
) -> tuple[int, bool]:
    """Add pages as one entry each, over as many batches as it takes -> (pages added, full)."""
    added = 0
    while added < pages:
        if c[PIECE_USED] >= MAX_FOLIOS_PER_FREE:
            c[PIECE] += 1
            c[PIECE_USED] = 0
        room = min(batch_limit(r, c) - c[USED], MAX_FOLIOS_PER_FREE - c[PIECE_USED])
        step = min(pages - added, room)
        push(g, c, extent, offset + added, step, step, step, pending)
        added += step
        if batch_filled(r, c) and not next_batch(r, c):
            return added, True
    return added, False


@inline
def push(
    g: I64s, c: I64, extent: int, offset: int, pages: int, entries: int, slots: int, pending: bool
) -> None:
    """Add a segment that takes so many slots of the batch in use."""
    if entries > 0 and c[PIECE_USED] >= MAX_FOLIOS_PER_FREE:
        c[PIECE] += 1
        c[PIECE_USED] = 0
    n = c[SEGMENTS]
    g[n, S_EXTENT] = extent
    g[n, S_OFFSET] = offset
    g[n, S_PAGES] = pages
    g[n, S_ENTRIES] = entries
    g[n, S_PIECE] = c[PIECE]
    g[n, S_PENDING] = pending
    c[SEGMENTS] = n + 1
    c[USED] += slots
    c[PIECE_USED] += slots
    c[GATHER_SLOTS] += slots


@inline
def batch_limit(r: Rules, c: I64) -> int:
    """Slots at which the batch in use counts as filled: a page and its count must always fit."""
    slots = BUNDLE_SLOTS if c[ACTIVE] == 0 else r.slots
    return slots - 1 if r.entry == ENTRY_PAGE_RUN else slots


@inline
def batch_filled(r: Rules, c: I64) -> bool:
    """Whether no further entry fits into the batch in use."""
    return c[USED] >= batch_limit(r, c)


@inline
def next_batch(r: Rules, c: I64) -> bool:
    """tlb_next_batch(): move on if a batch is left; a waiting rmap forbids it, but from the bundle."""
    if c[DELAYED] and c[ACTIVE] != 0:
        return False
    if c[ACTIVE] == r.batches:
        return False
    c[ACTIVE] += 1
    c[USED] = 0
    c[PIECE] += 1
    c[PIECE_USED] = 0
    c[RANGE_NEXT] = -1
    c[GATHER_PAGES_PEAK] = max(c[GATHER_PAGES_PEAK], c[ACTIVE])
    return True


@inline
def free_page_tables(e: I64s, f: I64s, g: I64s, r: Rules, c: I64, page_tables: int) -> None:
    """free_pgtables(): every page-table page is an entry of the same gather."""
    c[PAGE_TABLES] += page_tables
    left = page_tables
    while left > 0:
        added, full = gather_pages(g, r, c, PAGE_TABLE, 0, left, False)
        left -= added
        if full:
            force_flush(e, f, g, r, c)


@inline
def force_flush(e: I64s, f: I64s, g: I64s, r: Rules, c: I64) -> None:
    """tlb_flush_mmu()."""
    c[TLB_FLUSHES] += 1
    flush_gather(e, f, g, r, c)


@inline
def flush_gather(e: I64s, f: I64s, g: I64s, r: Rules, c: I64) -> None:
    """tlb_flush_mmu_free(): hand every piece over and begin anew with the bundle."""
    c[GATHER_FLUSHES] += 1
    segments = c[SEGMENTS]
    first = 0
    while first < segments:
        last = first + 1
        while last < segments and g[last, S_PIECE] == g[first, S_PIECE]:
            last += 1
        free_piece(e, f, g, r, c, first, last)
        first = last
    for name in (SEGMENTS, ACTIVE, USED, PIECE, PIECE_USED):
        c[name] = 0
    c[RANGE_NEXT] = -1


# ---------------------------------------------------------------------- rmap


@inline
def flush_rmaps(e: I64s, f: I64s, g: I64s, r: Rules, c: I64) -> None:
    """tlb_flush_rmaps(): the rmaps that wait for the end of the page-table page."""
    segments = c[SEGMENTS]
    first = 0
    if r.rmap == RMAP_RANGE:
        c[RMAP_FLUSHES] += 1
        # pages that joined an entry made before the mark count as done: the series' defect
        first = c[MARK]
        while first < segments and g[first, S_ENTRIES] == 0:
            first += 1
    elif not c[DELAYED]:
        return
    while first < segments:
        last = first + 1
        while last < segments and g[last, S_ENTRIES] == 0:
            last += 1
        if g[first, S_PENDING]:
            remove_pending(e, f, g, r, c, first, last)
        for i in range(first, last):
            g[i, S_PENDING] = False
        first = last
    c[DELAYED] = 0
    c[RANGE_NEXT] = -1


@inline
def remove_pending(e: I64s, f: I64s, g: I64s, r: Rules, c: I64, first: int, last: int) -> None:
    """The rmap of one entry (segments first to last), or of a segment of single pages."""
    i = g[first, S_EXTENT]
    batched = e[i, ORDER] > 0 and (r.rmap == RMAP_RUN or r.rmap == RMAP_RANGE)
    if batched:
        remove_rmap_batch(e, f, g, r, c, first, last)
    else:
        remove_rmap_each(e, f, c, i, g[first, S_OFFSET], g[first, S_PAGES])


@inline
def remove_rmap_each(e: I64s, f: I64s, c: I64, i: int, offset: int, pages: int) -> None:
    """page_remove_rmap() for each page."""
    c[RMAP_CALLS] += pages
    c[RMAP_PAGES] += pages
    c[MAPCOUNT_ATOMICS] += pages
    unmapped, cleared = drop_mapcounts(e, f, i, offset, pages)
    if e[i, ORDER] > 0:
        c[NR_MAPPED_ATOMICS] += cleared
        if e[i, FLAGS] & ANON and unmapped > 0:
            deferred_split(f, c, e[i, FOLIO], unmapped)


@inline
def remove_rmap_batch(e: I64s, f: I64s, g: I64s, r: Rules, c: I64, first: int, last: int) -> None:
    """One call of folio_remove_rmap_range() or folio_remove_rmap_ptes() for segments first to last."""
    folio = e[g[first, S_EXTENT], FOLIO]
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
    c[MAPCOUNT_ATOMICS] += pages
    if r.rmap == RMAP_RUN:
        c[LARGE_MAPCOUNT_ATOMICS] += 1
        c[NR_MAPPED_ATOMICS] += 1 if cleared > 0 else 0
    else:
        c[NR_MAPPED_ATOMICS] += 1
    marked = r.rmap == RMAP_RUN and f[folio, F_MARKED]
    if f[folio, F_ANON] and unmapped > 0 and f[folio, F_MAPPED] > 0 and not marked:
        deferred_split(f, c, folio, 1)


@inline
def drop_mapcounts(e: I64s, f: I64s, i: int, offset: int, pages: int) -> tuple[int, int]:
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
        place = e[i, PAGE_ROW] + offset
        for page in range(place, place + pages):
            f[page, F_MAPCOUNT] -= 1
            f[page, F_PMDS] -= e[i, KIND] == PMD
            unmapped += f[page, F_MAPCOUNT] == 0
            cleared += f[page, F_MAPCOUNT] == f[page, F_PMDS]
    f[folio, F_MAPPED] -= unmapped
    f[folio, F_MAPCOUNT] -= pages
    return unmapped, cleared


@inline
def deferred_split(f: I64s, c: I64, folio: int, calls: int) -> None:
    """deferred_split_folio(), called so often in a row."""
    c[DEFERRED_SPLIT_CALLS] += calls
    if f[folio, F_ORDER] < 2 or f[folio, F_SWAPCACHE]:
        return
    f[folio, F_MARKED] = True
    if not f[folio, F_QUEUED]:
        f[folio, F_QUEUED] = True
        c[DEFERRED_SPLIT_QUEUED] += 1


# ---------------------------------------------------------------------- release


@inline
def free_piece(e: I64s, f: I64s, g: I64s, r: Rules, c: I64, first: int, last: int) -> None:
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
    c[RELEASE_CALLS] += 1 if r.release_batch == 0 else (entries + r.release_batch - 1) // r.release_batch
    c[HELD] = 0
    c[POSITION] = 0
    c[LOCKED_CALL] = -1
    for s in range(first, last):
        c[REFERENCES_DROPPED] += g[s, S_PAGES]
        i = g[s, S_EXTENT]
        if i == PAGE_TABLE:
            pass_entries(r, c, g[s, S_ENTRIES])
        elif e[i, FOLIO] < 0:
            release_pages(e, r, c, i, g[s, S_PAGES])
        elif e[i, ORDER] == 0:
            for page in range(e[i, FOLIO] + g[s, S_OFFSET], e[i, FOLIO] + g[s, S_OFFSET] + g[s, S_PAGES]):
                release_folio(f, r, c, page, 1, 1)
        else:
            release_folio(f, r, c, e[i, FOLIO], g[s, S_ENTRIES], g[s, S_PAGES])


@inline
def free_swap_cache(e: I64s, f: I64s, c: I64, i: int, offset: int, pages: int) -> None:
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
def release_pages(e: I64s, r: Rules, c: I64, i: int, pages: int) -> None:
    """References of order-0 pages that this address space maps once: all are freed or none."""
    if not (e[i, FLAGS] & ANON and e[i, MAPCOUNT] == 1):
        pass_entries(r, c, pages)
        return
    c[FOLIOS_FREED] += pages
    c[PAGES_FREED] += pages
    if not r.relock:
        lock_calls(r, c, c[POSITION], pages)
    elif c[HELD]:
        age = c[LOCK_AGE] + pages
        c[LRUVEC_LOCKS] += age // LOCK_BATCH
        c[LOCK_AGE] = age % LOCK_BATCH
    else:
        c[LRUVEC_LOCKS] += (pages + LOCK_BATCH - 1) // LOCK_BATCH
        c[HELD] = 1
        c[LOCK_AGE] = (pages - 1) % LOCK_BATCH
    c[POSITION] += pages


@inline
def release_folio(f: I64s, r: Rules, c: I64, folio: int, entries: int, pages: int) -> None:
    """So many entries of one folio, `pages` references; the last of them may free it."""
    pass_entries(r, c, entries)
    f[folio, F_REFS] -= pages
    if f[folio, F_REFS] < 0:
        c[REFERENCES_DROPPED_TWICE] += min(pages, -f[folio, F_REFS])
    if f[folio, F_REFS] != 0:
        return
    if f[folio, F_QUEUED]:
        f[folio, F_QUEUED] = False
        c[DEFERRED_SPLIT_DEQUEUED] += 1
    lru = not f[folio, F_HUGETLB]
    if not r.relock:
        if lru:
            lock_calls(r, c, c[POSITION] - 1, 1)
        else:
            # free_huge_folio() must not be called under the lock: the next folio takes it again
            c[LOCKED_CALL] = min(c[LOCKED_CALL], (c[POSITION] - 1) // r.release_batch - 1)
    elif f[folio, F_ORDER] > 0:
        c[HELD] = 0
        c[LRUVEC_LOCKS] += lru
    elif not c[HELD]:
        c[HELD] = 1
        c[LOCK_AGE] = 0
        c[LRUVEC_LOCKS] += 1
    if lru:
        c[FOLIOS_FREED] += 1
        c[PAGES_FREED] += 1 << f[folio, F_ORDER]
        c[FREED_WHILE_MAPPED] += f[folio, F_MAPCOUNT]


@inline
def pass_entries(r: Rules, c: I64, entries: int) -> None:
    """Entries that free nothing: release_pages() drops a lock that it has held for LOCK_BATCH of them."""
    c[POSITION] += entries
    if r.relock and c[HELD]:
        c[LOCK_AGE] += entries
        if c[LOCK_AGE] >= LOCK_BATCH:
            c[HELD] = 0


@inline
def lock_calls(r: Rules, c: I64, position: int, entries: int) -> None:
    """Entries from `position` on free LRU folios: each release call that has one takes the lock once."""
    first = max(position // r.release_batch, c[LOCKED_CALL] + 1)
    last = (position + entries - 1) // r.release_batch
    c[LRUVEC_LOCKS] += max(last - first + 1, 0)
    c[LOCKED_CALL] = max(last, c[LOCKED_CALL])
