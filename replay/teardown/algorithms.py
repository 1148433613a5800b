"""The teardown algorithms as data: what a gather entry is, how the rmap goes, how entries are released.

An algorithm is nothing but three choices; `reference.py` and `machine.py` each have one loop that follows
them. Message ids are those of the linux-mm archives.
"""

from __future__ import annotations

import dataclasses
from enum import IntEnum
from typing import Final

from replay.errors import UsageError


class Entry(IntEnum):
    """What one entry of the `mmu_gather` holds."""

    PAGE = 0
    """One page: one slot of 8 bytes."""
    PAGE_RUN = 1
    """A page in one slot, or a page and a count in two (encoded_nr_pages)."""
    RANGE = 2
    """A range of pages of one folio: one slot of 16 bytes."""


class Rmap(IntEnum):
    """In what units the rmap is removed."""

    PTE = 0
    """One call per PTE, at once: page_remove_rmap()."""
    ANON_RUN = 1
    """One call per contiguous run of an anonymous large folio: folio_remove_rmap_range(); else per PTE."""
    RUN = 2
    """One call per contiguous run of any folio, at once: folio_remove_rmap_ptes().

    On arm64 a run also ends where entries with the contiguous bit do: pte_same() of folio_pte_batch() sees
    the bit (see `contiguous.py`).
    """
    RANGE = 3
    """One call per gathered range, at the end of each page-table page."""


class Release(IntEnum):
    """Who drops the references of a piece of at most 512 entries."""

    RELEASE_PAGES = 0
    """release_pages(): one call per piece."""
    FOLIOS_PUT = 1
    """folios_put(): one call per 15 entries (PAGEVEC_SIZE of v6.6)."""
    FOLIOS_PUT_REFS = 2
    """folios_put_refs() of the series: one call per piece, locks as in release_pages()."""
    FOLIOS_PUT_REFS_BATCH = 3
    """folios_put_refs() of v6.9: one call per 31 entries (PAGEVEC_SIZE of v6.9)."""


RELEASE_BATCH: Final = {Release.FOLIOS_PUT: 15, Release.FOLIOS_PUT_REFS_BATCH: 31}
"""Entries of one release call, where a piece is handed over in smaller batches."""


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """One teardown algorithm.

    `delayed_rmap`: the rmap of file pages that are dirty in the PTE is removed only after the TLB flush
    at the end of the page-table page (v6.2, commit 5df397dec7c4). `thps_queued`: anonymous PMD-sized folios
    are on the deferred split queue from birth (v6.12, commit dafff3f4c850 "mm: split underused THPs").
    """

    name: str
    title: str
    source: str
    entry: Entry
    rmap: Rmap
    release: Release
    delayed_rmap: bool = True
    thps_queued: bool = False
    note: str = ""

    @property
    def range_rmap(self) -> bool:
        """Whether the rmap waits for the end of the page-table page."""
        return self.rmap is Rmap.RANGE


ALGORITHMS: Final = {
    algorithm.name: algorithm
    for algorithm in (
        Algorithm(
            "baseline",
            "the kernel that the series changes",
            "mm-unstable b93868dbf9bc, about v6.6-rc1",
            Entry.PAGE,
            Rmap.PTE,
            Release.RELEASE_PAGES,
        ),
        Algorithm(
            "v6.1",
            "baseline without delayed rmap removal",
            "Linux v6.1 (before commit 5df397dec7c4, v6.2)",
            Entry.PAGE,
            Rmap.PTE,
            Release.RELEASE_PAGES,
            delayed_rmap=False,
        ),
        Algorithm(
            "anon-batch",
            "Optimize large folio teardown, v4: batches the rmap removal of anonymous large folios",
            "<20230727141837.3386072-1-ryan.roberts@arm.com>",
            Entry.PAGE,
            Rmap.ANON_RUN,
            Release.RELEASE_PAGES,
        ),
        Algorithm(
            "v1",
            "Optimize mmap_exit for large folios, v1: ranges of struct page pointers",
            "<20230810103332.3062143-1-ryan.roberts@arm.com>",
            Entry.RANGE,
            Rmap.RANGE,
            Release.FOLIOS_PUT_REFS,
            delayed_rmap=False,
            note="Counts as v2: they differ only without vmemmap, and for zone-device folios, where v1 leaks "
            "references; procfs shows neither.",
        ),
        Algorithm(
            "v2",
            "Optimize mmap_exit for large folios, v2: ranges of pfns",
            "<20230830095011.1228673-1-ryan.roberts@arm.com>",
            Entry.RANGE,
            Rmap.RANGE,
            Release.FOLIOS_PUT_REFS,
            delayed_rmap=False,
            note="A page-table page that begins with page 1 of a folio just unmapped by its PMD entry joins "
            "that entry's range, whose rmap counts as done: those pages are rmap_missed (v1 too).",
        ),
        Algorithm(
            "folio-batch",
            "Rearrange batched folio freeing: the competing series",
            "<20230825135918.4164671-1-willy@infradead.org>",
            Entry.PAGE,
            Rmap.PTE,
            Release.FOLIOS_PUT,
        ),
        Algorithm(
            "mainline",
            "what v6.9 merged and v6.12 runs: batched zap, page and count, folio batches of 31",
            "Linux v6.12",
            Entry.PAGE_RUN,
            Rmap.RUN,
            Release.FOLIOS_PUT_REFS_BATCH,
            thps_queued=True,
        ),
    )
}

BASELINE: Final = "baseline"

NOT_MODELLED: Final = (
    "Preemption: need_resched() breaks zap_pte_range() off; where dirty PTEs wait, that flushes what was "
    "gathered. In the builds of 'replay validate' no free moved by it.",
    "References that procfs does not show (pins, pipes, buffers): folios with one are freed later.",
    "LRU and mlock batches: until they are emptied they hold a reference to each of their folios; those of "
    "other CPUs kept back folios at 4 to 44 % of the exits of a build, by the machine.",
    "The PTE dirty bit: inferred as not anonymous, VMA shared and writable, folio dirty; it moves flushes "
    "and with them release calls, never rmap counts.",
    "The contiguous bit of arm64's PTEs, where runs of 'mainline' end: inferred, every aligned "
    "block of one folio has it that can (16 entries with 4 KiB pages).",
    "Page tables of hugetlb that processes share (huge_pmd_unshare()): their pages count in each process.",
    "page_poisoning and init_on_free, which make 'mainline' release pieces of fewer pages.",
    "NUMA hinting: entries that it has made PROT_NONE end runs of 'mainline'; pagemap does not show them.",
    "_nr_pages_mapped where another address space maps a folio by a PMD that this one maps by PTEs: "
    "'nr_mapped_atomics' is too low there. v6.1 has no such counter yet; its row counts that of 'baseline'.",
    "split_queue_lock where 'mainline' finds the folio queued already: 'locks' misses it.",
    "Swap entries that another process still uses: the kernel keeps such a folio in the swap cache.",
    "Swap entries whose folio is still in the swap cache: free_swap_and_cache() frees it with the entry.",
    "Several lruvecs (memory cgroups, NUMA nodes): one is assumed for lruvec_locks.",
    "Zone-device folios: procfs shows neither their size nor their counts; a trace with one that a PMD maps "
    "is refused.",
)


def select(names: list[str] | None) -> list[Algorithm]:
    """The algorithms of these names in their own order, all for None.

    Raises `UsageError` for an unknown name, or none.
    """
    if names is not None and not names:
        raise UsageError(f"no algorithm is named: choose from {', '.join(ALGORITHMS)}")
    for name in names or []:
        if name not in ALGORITHMS:
            raise UsageError(f"unknown algorithm '{name}': choose from {', '.join(ALGORITHMS)}")
    return [algorithm for algorithm in ALGORITHMS.values() if names is None or algorithm.name in names]


MAX_GATHER_ENTRIES: Final = 10000
"""Entries of the gather before it must flush: MAX_GATHER_BATCH_COUNT of include/asm-generic/tlb.h."""
MAX_FOLIOS_PER_FREE: Final = 512
"""Slots of one piece of a gather batch: MAX_NR_FOLIOS_PER_FREE of mm/mmu_gather.c."""
BUNDLE_SLOTS: Final = 8
"""Slots of the bundle inside the mmu_gather itself: MMU_GATHER_BUNDLE."""
BATCH_HEADER_BYTES: Final = 16
"""Bytes of a batch page before its slots: struct mmu_gather_batch."""


def batch_slots(entry: Entry, page_size: int) -> int:
    """Slots of one batch page: 510 pages or 255 ranges with 4 KiB pages."""
    return (page_size - BATCH_HEADER_BYTES) // (16 if entry is Entry.RANGE else 8)


def max_batches(entry: Entry, page_size: int) -> int:
    """Batch pages of one gather at most: 19, or 39 of ranges, with 4 KiB pages."""
    return MAX_GATHER_ENTRIES // batch_slots(entry, page_size)


TABLE_BATCH_HEADER_BYTES: Final = 24
"""Bytes of a batch of page tables before its slots: struct mmu_table_batch."""


def table_batch(page_size: int) -> int:
    """Page tables that RCU frees at once: MAX_TABLE_BATCH, 509 with 4 KiB pages."""
    return (page_size - TABLE_BATCH_HEADER_BYTES) // 8


def flushes_for_tables(architecture: str) -> bool:
    """Whether only freed page tables make TLB flushes in exit_mmap(): on arm64.

    Its tlb_flush() leaves the translations of a whole address space in the TLB, as its ASID is not used again
    without a flush.
    """
    return architecture == "aarch64"


def tables_in_gather(architecture: str) -> bool:
    """Whether page-table pages go through the gather: on x86 (up to v6.13, bare metal); elsewhere by RCU."""
    return architecture in ("x86_64", "i686", "i386")
