# SPDX-License-Identifier: Apache-2.0
"""The machine, third part: rmap calls, mapcounts, the deferred split queue and the mlock batch.

Names of arguments are those of `machine.py`.
"""

from __future__ import annotations

from replay.jit.compiled import I64, inline
from replay.teardown.algorithms import PAGEVEC_SIZE, Mapcounts
from replay.teardown.large_folios import are_whole_folios, folio_ends, folio_heads, folios_in, in_runs
from replay.teardown.release import free_folio, is_freed
from replay.teardown.state import (
    ANON,
    DEFERRED_SPLIT_CALLS,
    DEFERRED_SPLIT_DEQUEUED,
    DEFERRED_SPLIT_QUEUED,
    DELAYED,
    F_ANON,
    F_MAPCOUNT,
    F_MAPPED,
    F_ORDER,
    F_PARTIALLY_MAPPED,
    F_PMDS,
    F_QUEUED,
    F_REFS,
    F_SWAPCACHE,
    FLAGS,
    FOLIO,
    KIND,
    LARGE_MAPCOUNT_ATOMICS,
    LOCKED,
    MAPCOUNT,
    MAPCOUNT_ATOMICS,
    MARK,
    MLOCKED,
    NR_MAPPED_ATOMICS,
    ORDER,
    PAGE_ROW,
    PMD,
    RANGE_NEXT,
    RMAP_CALLS,
    RMAP_FLUSHES,
    RMAP_PAGES,
    S_ENTRIES,
    S_EXTENT,
    S_OFFSET,
    S_PAGES,
    S_PENDING,
    SEGMENTS,
    ExtentTable,
    FolioTable,
    Rules,
    SegmentTable,
)

OF_PAGES, OF_RANGE, OF_NO_PAGE = int(Mapcounts.PAGES), int(Mapcounts.RANGE), int(Mapcounts.NO_PAGE)


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
        if g[first, S_PENDING] and are_whole_folios(e, i):
            runs = g[first, S_ENTRIES] < g[first, S_PAGES]
            remove_rmap_folios(e, r, c, i, g[first, S_OFFSET], g[first, S_PAGES], runs)
        elif g[first, S_PENDING] and (e[i, ORDER] == 0 or g[first, S_ENTRIES] > 1):
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
def remove_rmap_folios(e: ExtentTable, r: Rules, c: I64, i: int, offset: int, pages: int, runs: bool) -> None:
    """Rmap calls for some pages of whole folios: one for each page, or for each folio if they are runs.

    The pages of a folio come in order: where its first pages are missing here, they had their calls before.
    """
    end = offset + pages
    calls = folios_in(e, i, offset, pages) if runs else pages
    c[RMAP_CALLS] += calls
    c[RMAP_PAGES] += pages
    if r.counts_pages:
        c[MAPCOUNT_ATOMICS] += pages
    mapcounts = mapcounts_of(e, r, i)
    unmaps = e[i, MAPCOUNT] == 1
    if mapcounts == OF_PAGES:
        c[NR_MAPPED_ATOMICS] += pages if unmaps else 0
    elif mapcounts == OF_RANGE:
        c[NR_MAPPED_ATOMICS] += calls
    else:
        c[LARGE_MAPCOUNT_ATOMICS] += calls
        c[NR_MAPPED_ATOMICS] += calls if unmaps and mapcounts != OF_NO_PAGE else 0
    if not (unmaps and e[i, FLAGS] & ANON):
        return
    begun = folio_heads(e, i, end) - folio_heads(e, i, offset)
    splits = calls
    first_splits = begun
    if mapcounts != OF_PAGES:
        # a call that unmaps the last page of its folio leaves nothing to split
        splits -= folio_ends(e, i, end) - folio_ends(e, i, offset)
        first_splits -= max(folio_ends(e, i, end) - folio_heads(e, i, offset), 0) if runs else 0
    deferred_splits(e, r, c, i, begun, splits, first_splits)


@inline
def deferred_splits(
    e: ExtentTable, r: Rules, c: I64, i: int, folios: int, splits: int, first_splits: int
) -> None:
    """deferred_split_folio() for whole folios, and the queue that they are on until they are freed.

    folios: how many had their first rmap call. splits: calls of deferred_split_folio(). first_splits: how
    many of these calls are the first for their folio. What is queued here is freed later in this teardown,
    and leaves the queue then: it is counted at once.
    """
    if e[i, ORDER] < 2:
        c[DEFERRED_SPLIT_CALLS] += splits
        return
    c[DEFERRED_SPLIT_CALLS] += first_splits if r.splits_once else splits
    queued = folios
    if e[i, ORDER] != r.queued_order:
        queued = first_splits
        c[DEFERRED_SPLIT_QUEUED] += first_splits
    if is_freed(e, r, i):
        c[DEFERRED_SPLIT_DEQUEUED] += queued


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


@inline
def mapcounts_of(e: ExtentTable, r: Rules, i: int) -> int:
    """How the mappings of a folio are counted: folio_remove_rmap_range() is for runs and ranges only."""
    if r.mapcounts == OF_RANGE and not (r.defers_rmap or in_runs(e, r, i)):
        return OF_PAGES
    return r.mapcounts
