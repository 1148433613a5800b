# SPDX-License-Identifier: Apache-2.0
"""The machine, last part: a chunk of the gather is released, and folios without further references are freed.

Names of arguments are those of `machine.py`.
"""

from __future__ import annotations

from replay.jit.compiled import I64, inline
from replay.teardown.large_folios import are_whole_folios, folio_ends
from replay.teardown.state import (
    ANON,
    DEFERRED_SPLIT_DEQUEUED,
    F_HUGETLB,
    F_MAPCOUNT,
    F_MEMCG,
    F_ORDER,
    F_QUEUED,
    F_REFS,
    F_SWAPCACHE,
    FLAGS,
    FOLIO,
    FOLIOS_FREED,
    FREE_CALLS,
    FREED_WHILE_MAPPED,
    HELD,
    HELD_MEMCG,
    LOCK_AGE,
    LOCKED_CALL,
    LRUVEC_LOCKS,
    MAPCOUNT,
    MEMCG,
    OFF_LRU,
    ORDER,
    PAGE_TABLE,
    PAGES_FREED,
    POSITION,
    REFCOUNT_ATOMICS,
    REFERENCES_DROPPED,
    REFERENCES_DROPPED_TWICE,
    RELEASE_CALLS,
    RELEASE_ENTRIES,
    S_ENTRIES,
    S_EXTENT,
    S_OFFSET,
    S_PAGES,
    SWAPCACHE,
    SWAPCACHE_CHECKS,
    SWAPCACHE_FREES,
    ExtentTable,
    FolioTable,
    Rules,
    SegmentTable,
)


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
        elif are_whole_folios(e, i):
            release_folios(e, r, c, i, g[s, S_OFFSET], g[s, S_PAGES], g[s, S_ENTRIES])
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
    if not is_freed(e, r, i):
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
def is_freed(e: ExtentTable, r: Rules, i: int) -> bool:
    """Whether the references of an extent without a state are the last ones of its folios."""
    waits = e[i, FLAGS] & OFF_LRU != 0 and not r.drains_lru
    return e[i, FLAGS] & ANON != 0 and e[i, MAPCOUNT] == 1 and not waits


@inline
def release_folios(e: ExtentTable, r: Rules, c: I64, i: int, offset: int, pages: int, entries: int) -> None:
    """References of whole folios, in so many entries: the entry with the last page of a folio frees it."""
    ends = folio_ends(e, i, offset + pages) - folio_ends(e, i, offset)
    if ends == 0 or not is_freed(e, r, i):
        pass_entries(r, c, entries)
        return
    c[FOLIOS_FREED] += ends
    c[PAGES_FREED] += ends << e[i, ORDER]
    if r.relocks:
        # a large folio is freed with the lock of its own, which is not kept
        c[HELD] = 0
        c[LRUVEC_LOCKS] += ends
        c[POSITION] += entries
        return
    # entries from one that frees a folio to the next
    apart = 1 << e[i, ORDER] if entries == pages else 1
    first = c[POSITION] + apart - 1 - offset % apart
    last_call = (first + (ends - 1) * apart) // r.release_batch
    lock_calls(r, c, first, 1, e[i, MEMCG])
    c[LRUVEC_LOCKS] += ends - 1 if apart >= r.release_batch else last_call - c[LOCKED_CALL]
    c[LOCKED_CALL] = last_call
    c[POSITION] += entries


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
