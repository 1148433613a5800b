"""From the events of one exit to the counters of the replay, as the kernel made them."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from lab.pages import SWAPCACHE, Leaves
from lab.trace import Event

VMEMMAP = 0xFFFFEA0000000000  # struct pages, 64 bytes each: four-level page tables without KASLR
STRUCT_PAGE = 64
_DRAIN_IN = {"drain", "mlock_drain"}
_DRAIN_OUT = {"drained", "mlock_drained"}


class NoExit(Exception):
    """The trace does not hold a whole exit_mmap() of the process."""


@dataclass
class Observed:
    """What one exit_mmap() did. Counters that the kernel's probes cannot show are missing from `counters`."""

    counters: dict[str, int] = field(default_factory=dict)
    rmap_sizes: dict[int, int] = field(default_factory=dict)
    release_sizes: list[int] = field(default_factory=list)
    flush_groups: list[list[int]] = field(default_factory=list)
    freed: list[list[int]] = field(default_factory=list)
    preempted: bool = False


def pfn_of(page: int) -> int:
    """The page frame number of a struct page address."""
    return (page - VMEMMAP) // STRUCT_PAGE


def window(events: Iterable[Event], pid: int) -> tuple[list[Event], bool]:
    """The events between the entry of exit_mmap() and the return of tlb_finish_mmu(), and whether it was preempted.

    Interrupts that land in between are not the teardown's work; another process running in between is preemption.
    """
    inside: list[Event] = []
    mm = 0
    preempted = False
    for event in events:
        if not mm:
            if event.name == "exit_mmap" and event.pid == pid:
                mm = event.args["mm"]
        elif event.in_interrupt:
            continue
        elif event.pid != pid or event.name == "resched":
            preempted = True
        elif event.name == "flush_range" and event.args["mm"] != mm:
            continue
        else:
            inside.append(event)
            if event.name == "tlb_finished":
                return inside, preempted
    raise NoExit("no complete exit_mmap() in the trace")


def without_drains(events: Iterable[Event]) -> list[Event]:
    """Events that are not part of draining LRU-add or mlock batches; page frees stay wherever they happen."""
    depth = 0
    kept = []
    for event in events:
        if event.name in _DRAIN_IN:
            depth += 1
        elif event.name in _DRAIN_OUT:
            depth -= 1
        elif not depth or event.name == "mm_page_free":
            kept.append(event)
    return kept


def flush_groups(events: Iterable[Event]) -> list[list[int]]:
    """Sizes (in slots) of the pieces of each gather flush that released anything."""
    groups: list[list[int]] = [[]]
    for event in events:
        if event.name in ("tlb_flush_mmu", "tlb_finish"):
            groups.append([])
        elif event.name == "free_calls":
            groups[-1].append(event.args["nr"])
    return [group for group in groups if group]


def _rmap(events: list[Event], kpageflags: np.ndarray) -> tuple[Counter, int]:
    """Pages per PTE-level rmap call -> calls, and PMD-level calls of THPs."""
    sizes: Counter = Counter()
    pmd = 0
    for event in events:
        if event.name == "rmap_ptes":
            sizes[event.args["nr"]] += 1
        elif event.name == "rmap_pmd":
            pmd += 1
        elif event.name == "rmap_page":
            if not event.args["compound"]:
                sizes[1] += 1
            elif not int(kpageflags[pfn_of(event.args["page"])]) >> 17 & 1:
                pmd += 1
    return sizes, pmd


def _newly_queued(events: list[Event], kpageflags: np.ndarray, offset: int) -> int:
    """Folios that a deferred split call found off the queue; those in the swap cache are not queued."""
    queued = {
        event.args["page"]
        for event in events
        if event.name == "deferred_split" and event.args["next"] == event.args["page"] + offset
    }
    return sum(not int(kpageflags[pfn_of(page)]) >> SWAPCACHE & 1 for page in queued)


def observe(
    events: Iterable[Event], pid: int, probed: dict[str, str], leaves: Leaves, kpageflags: np.ndarray, head: np.ndarray
) -> Observed:
    """Counters of one exit.

    :param probed: event -> kernel symbol, for the probes that the kernel accepted
    :param head: for each pfn its folio's first pfn
    """
    inside, preempted = window(events, pid)
    inside = without_drains(inside)
    number = Counter(event.name for event in inside)
    sizes, pmd = _rmap(inside, kpageflags)
    release = "folios_put_refs" if "folios_put_refs" in probed else "release_pages"
    release_sizes = [event.args["nr"] for event in inside if event.name == release]
    groups = flush_groups(inside)
    folios = set(head[leaves.mapped].tolist())
    freed = [
        [event.args["pfn"], event.args["order"]]
        for event in inside
        if event.name == "mm_page_free" and event.args["pfn"] in folios
    ]
    after_finish = inside[[event.name for event in inside].index("tlb_finish") :]
    list_offset = 152 if probed.get("deferred_split") == "deferred_split_huge_page" else 144
    dequeued = [
        event
        for event in inside
        if event.name == "split_dequeue" and event.args["next"] != event.args["page"] + list_offset
    ]
    counters = {
        "ptes": len(leaves.pte_vpn),
        "special_ptes": leaves.special,
        "hugetlb_pages": leaves.hugetlb,
        "pmd_mappings": pmd,
        "swap_entries": sum(event.args.get("nr", 1) for event in inside if event.name == "swap_entries"),
        "page_tables": number["pte_table"] + number["pmd_table"] + number["pud_table"],
        "rmap_calls": sum(sizes.values()),
        "rmap_pages": sum(size * calls for size, calls in sizes.items()),
        "deferred_split_calls": number["deferred_split"],
        "deferred_split_queued": _newly_queued(inside, kpageflags, list_offset),
        "deferred_split_dequeued": len(dequeued),
        "gather_slots": sum(map(sum, groups)),
        "gather_pages_peak": sum(event.name == "free_pages" for event in after_finish),
        "gather_flushes": len(groups),
        "tlb_flushes": number["flush_range"],
        "swapcache_checks": number["swapcache_check"],
        "swapcache_frees": number["swapcache_delete"],
        "free_calls": number["free_calls"],
        "release_calls": len(release_sizes),
        "release_entries": sum(release_sizes),
        "lruvec_locks": number["lruvec_lock"],
        "folios_freed": len(freed),
        "pages_freed": sum(1 << order for _, order in freed),
    }
    return Observed(counters, dict(sorted(sizes.items())), release_sizes, groups, freed, preempted)
