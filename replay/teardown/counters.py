# SPDX-License-Identifier: Apache-2.0
"""The counters: names, order, meaning. One row of a result has all of them, as unsigned integers."""

from __future__ import annotations

from typing import Final

COUNTERS: Final = {
    "ptes": "present normal PTEs torn down",
    "swap_entries": "swap entries (not present, pagemap bit 62, of a swap area)",
    "special_ptes": "present entries without a normal page: zero page, PFN maps",
    "marker_ptes": "PTE markers (guard regions, userfaultfd write protection), dropped without a call",
    "pmd_mappings": "folios unmapped by one PMD entry",
    "hugetlb_pages": "huge pages of hugetlb",
    "page_tables": "page-table pages freed, through the gather or by RCU",
    "table_batches": "batches of page-table pages handed to RCU; 0 where they go through the gather",
    "rmap_calls": "PTE-level rmap removal calls",
    "rmap_pages": "pages in these calls",
    "rmap_missed": "ptes - rmap_pages: pages whose rmap was never removed; not 0 is a bug of the algorithm",
    "mapcount_atomics": "atomic operations on page mapcounts",
    "nr_mapped_atomics": "atomic operations on a large folio's count of mapped pages (_nr_pages_mapped)",
    "large_mapcount_atomics": "atomic operations on a large folio's _large_mapcount or _mm_ids lock",
    "deferred_split_calls": "calls of deferred_split_folio()",
    "deferred_split_queued": "folios put on the deferred split queue, its lock taken",
    "deferred_split_dequeued": "freed folios taken off the deferred split queue, its lock taken",
    "gather_slots": "mmu_gather slots used, page tables included where they go through the gather",
    "gather_pages_peak": "pages allocated for the gather's batches",
    "gather_flushes": "flushes of the gather that released at least one entry, the last one included",
    "tlb_flushes": "TLB flushes; on arm64 those for freed page tables: at exit tlb_flush() does nothing else",
    "rmap_flushes": "removals of pending rmaps, at the ends of page-table pages",
    "swapcache_checks": "calls of free_swap_cache()",
    "swapcache_frees": "folios removed from the swap cache",
    "free_calls": "chunks of gather batches handed to the release",
    "release_calls": "calls of release_pages(), folios_put_refs() or folios_put()",
    "release_entries": "gather entries released",
    "refcount_atomics": "atomic operations on folio reference counts",
    "lruvec_locks": "lruvec lock acquisitions, by memory cgroup where the trace has it; one NUMA node",
    "folios_freed": "folios freed",
    "pages_freed": "pages of these folios",
    "atomics": "mapcount + nr_mapped + large_mapcount + refcount atomics",
    "locks": "deferred_split_queued + deferred_split_dequeued + lruvec_locks",
}
"""Counter -> meaning, in the order of every result."""

COUNTED: Final = tuple(name for name in COUNTERS if name not in ("rmap_missed", "atomics", "locks"))
"""The counters that a replay counts; the others are sums and differences of them."""

CHECKS: Final = {
    "freed_while_mapped": "mappings that are left when this exit frees their folio",
    "references_left": "references of the process that were never dropped",
    "references_dropped_twice": "references dropped below zero",
}
"""What must be 0 beside `rmap_missed`: check -> meaning."""


def complete(counted: dict[str, int]) -> dict[str, int]:
    """The counted figures -> all counters, in order."""
    full = dict(counted)
    full["rmap_missed"] = counted["ptes"] - counted["rmap_pages"]
    full["atomics"] = sum(
        counted[name]
        for name in ("mapcount_atomics", "nr_mapped_atomics", "large_mapcount_atomics", "refcount_atomics")
    )
    full["locks"] = sum(
        counted[name] for name in ("deferred_split_queued", "deferred_split_dequeued", "lruvec_locks")
    )
    return {name: full[name] for name in COUNTERS}
