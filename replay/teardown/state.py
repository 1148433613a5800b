# SPDX-License-Identifier: Apache-2.0
"""What the machine sees: the columns of its tables, the algorithm as numbers, the counts.

All tables are int64 arrays with one row per thing, so that a function takes a handful of arguments and the
fields of a thing lie side by side in memory.
"""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from replay.jit.compiled import Array
from replay.teardown.counters import COUNTED

# -- the extents table, one row per extent, read only --------------------------------------------------------
(
    KIND,  # see below
    TABLE,  # number of the page-table page, or of the huge mapping
    TABLE_END,  # page number behind the part of the VMA under its PMD entry
    VPN,
    PAGES,
    PFN,
    FOLIO_END,  # pfn behind its folio
    ORDER,
    MAPCOUNT,
    FLAGS,  # bits below
    FOLIO,  # row of its folio in the folios table (order-0 pages: of its first page), or NO_FOLIO
    PAGE_ROW,  # row of its first page there, for pages of large folios mapped more than once, or NO_FOLIO
    MEMCG,  # memory cgroup of its folios
    EXTENT_COLUMNS,
) = range(14)

PAGE, PMD, HUGETLB, SPECIAL, SWAP, MARKER, HUGE_ZERO = range(7)
"""Kinds: those of a trace, and the huge zero page, which is special but has one entry."""

ANON, SWAPCACHE, UFFD_WP, DIRTY, BEGINS, CONTIGUOUS, OFF_LRU, LOCKED = (1 << n for n in range(8))
"""Bits of FLAGS.

BEGINS: the first extent of a huge mapping (its pages may differ in a column). OFF_LRU: folios that wait in an
LRU or mlock batch. LOCKED: the VMA is VM_LOCKED.
"""

NO_FOLIO: Final = -1
"""No state is needed: the address space maps each page once, whole folios, and no mlock batch gets them.

An extent of large folios without a state is one or more of one order, one behind the other.
"""

# -- the folios table, changed by the replay -----------------------------------------------------------------
(
    F_ORDER,
    F_ANON,
    F_HUGETLB,
    F_MAPPED,  # pages with a mapcount above zero
    F_MAPCOUNT,  # sum of the mapcounts; of a PAGE_ROW: of the page
    F_REFS,
    F_SWAPCACHE,
    F_PARTIALLY_MAPPED,  # folio_test_partially_mapped()
    F_QUEUED,  # on the deferred split queue
    F_PMDS,  # of a PAGE_ROW: how many of the mappings of the page are by this address space's PMD entries
    F_WAITS,  # the batch that it waits in at capture: below, or 0
    F_MEMCG,
    FOLIO_COLUMNS,
) = range(13)

LRU_ADD_BATCH, MLOCK_BATCH = 1, 2
"""Values of F_WAITS."""

# -- the gather: one row per segment -------------------------------------------------------------------------
(
    S_EXTENT,  # row in the extents table, or PAGE_TABLE
    S_OFFSET,  # first page in the extent
    S_PAGES,
    S_ENTRIES,  # as many as pages, as folios, or 0 for pages that join the entry before
    S_CHUNK,  # chunks of batches, numbered since the last flush
    S_PENDING,  # its rmap waits for the end of the page-table page
    SEGMENT_COLUMNS,
) = range(7)

PAGE_TABLE: Final = -1
"""Extent of a segment of page-table pages."""

ExtentTable = Annotated[npt.NDArray[np.int64], Array("int64", 2, EXTENT_COLUMNS)]
FolioTable = Annotated[npt.NDArray[np.int64], Array("int64", 2, FOLIO_COLUMNS)]
SegmentTable = Annotated[npt.NDArray[np.int64], Array("int64", 2, SEGMENT_COLUMNS)]

# of each algorithm one
FolioTables = Annotated[npt.NDArray[np.int64], Array("int64", 3, FOLIO_COLUMNS)]
SegmentTables = Annotated[npt.NDArray[np.int64], Array("int64", 3, SEGMENT_COLUMNS)]

# -- the counts ----------------------------------------------------------------------------------------------
COUNTS: Final = (*COUNTED, "freed_while_mapped", "references_dropped", "references_dropped_twice")
"""Names of the counts, in the order of the machine's result: counters, then checks of the algorithm."""
(
    PTES,
    SWAP_ENTRIES,
    SPECIAL_PTES,
    MARKER_PTES,
    PMD_MAPPINGS,
    HUGETLB_PAGES,
    PAGE_TABLES,
    TABLE_BATCHES,
    RMAP_CALLS,
    RMAP_PAGES,
    MAPCOUNT_ATOMICS,
    NR_MAPPED_ATOMICS,
    LARGE_MAPCOUNT_ATOMICS,
    DEFERRED_SPLIT_CALLS,
    DEFERRED_SPLIT_QUEUED,
    DEFERRED_SPLIT_DEQUEUED,
    GATHER_SLOTS,
    GATHER_PAGES_PEAK,
    GATHER_FLUSHES,
    TLB_FLUSHES,
    RMAP_FLUSHES,
    SWAPCACHE_CHECKS,
    SWAPCACHE_FREES,
    FREE_CALLS,
    RELEASE_CALLS,
    RELEASE_ENTRIES,
    REFCOUNT_ATOMICS,
    LRUVEC_LOCKS,
    FOLIOS_FREED,
    PAGES_FREED,
    FREED_WHILE_MAPPED,
    REFERENCES_DROPPED,
    REFERENCES_DROPPED_TWICE,
    # behind the counts: the registers of struct mmu_gather
    SEGMENTS,  # in use
    ACTIVE,  # batch in use, 0 is the bundle
    USED,  # its slots used
    CHUNK,  # chunk under way
    CHUNK_USED,  # its slots used
    DELAYED,  # whether a delayed rmap waits
    MARK,  # first segment of the pass
    RANGE_NEXT,  # pfn that would extend the open range, or -1
    CLEARED,  # whether entries were cleared since the last TLB flush
    FREED_TABLES,  # whether page tables were freed since the last TLB flush
    # of the lruvec lock in a release call
    HELD,
    HELD_MEMCG,  # whose lruvec it is
    LOCK_AGE,  # entries since it was taken
    POSITION,  # entries of the chunk released so far
    LOCKED_CALL,  # last release call of the chunk that took it
    # and the mlock batch: how many folios, then the folios
    MLOCKED,
    REGISTERS,
) = range(50)


WHOLE_CHUNK: Final = 1 << 40
"""Entries of a release call that takes a whole chunk: more than any chunk has."""

ANON_RUNS, FILE_RUNS = 1, 2
"""Bits of `Rules.runs`: large folios whose runs are taken together."""


class Rules(NamedTuple):
    """An algorithm as numbers: all that the machine knows of it. Names are those of `algorithms.Algorithm`.

    entry, mapcounts: numbers of `algorithms.Entry`, `algorithms.Mapcounts`. runs: `ANON_RUNS`, `FILE_RUNS`.
    release_batch: entries of a release call, or `WHOLE_CHUNK`. slots, batches: of the gather. table_batch:
    page tables handed to RCU at once. queued_order: order of the anonymous folios that are on the deferred
    split queue from birth, or -1. alike: bits of FLAGS that all extents of a run share. tlb_by_tables: only
    freed page tables make TLB flushes.
    """

    entry: int
    runs: int
    delayed_rmap: bool
    relocks: bool
    release_batch: int
    slots: int
    batches: int
    table_batch: int
    queued_order: int
    mapcounts: int
    alike: int
    run_references: int
    bundle: int
    batch_pages: int
    max_folios_per_free: int
    lock_batch: int
    defers_rmap: bool
    counts_pages: bool
    splits_once: bool
    drains_lru: bool
    tables_by_rcu: bool
    tlb_by_tables: bool
