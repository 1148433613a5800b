"""From the events of one exit to the counters of the replay, as the kernel made them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from lab.pages import HUGE, SWAPCACHE, Leaves, heads
from lab.probes import DEFERRED_LIST
from lab.trace import Event

VMEMMAP = 0xFFFFEA0000000000  # struct pages, 64 bytes each: four-level page tables without KASLR
STRUCT_PAGE = 64
# release_pages() of v6.1, folios_put_refs() since v6.9, where exit_mmap() no longer calls the former.
RELEASES = ("release_pages", "folios_put_refs")
RMAPS = {"rmap_page", "rmap_ptes"}
_AT_SWAP_ENTRY = {"swapcache_delete", "lruvec_lock", "split_dequeue"}
_NOT_AT_SWAP_ENTRY = {
    *RMAPS,
    *RELEASES,
    "rmap_pmd",
    "free_calls",
    "swapcache_check",
    "tlb_flush_mmu",
    "tlb_finish",
}
_DRAIN_IN = {"drain", "mlock_drain"}
_DRAIN_OUT = {"drained", "mlock_drained"}


class NoExitError(Exception):
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
    """The events between the entry of exit_mmap() and the return of tlb_finish_mmu(); if it was preempted.

    Interrupts that land in between are not the teardown's work; another process running is preemption.
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
    raise NoExitError("no complete exit_mmap() in the trace")


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


def of_release(events: Iterable[Event]) -> list[Event]:
    """Events without what freeing swap entries does to folios that are in the swap cache and not mapped.

    The kernel then drops the cached folio at once: it is no part of the gather, and procfs shows only the
    entry.
    """
    at_swap_entry = False
    kept = []
    for event in events:
        if event.name == "swap_entries":
            at_swap_entry = True
        elif event.name in _NOT_AT_SWAP_ENTRY:
            at_swap_entry = False
        if not (at_swap_entry and event.name in _AT_SWAP_ENTRY):
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


def _rmap(events: list[Event], kpageflags: np.ndarray) -> tuple[Counter[int], int]:
    """Pages per PTE-level rmap call -> calls, and PMD-level calls of THPs."""
    sizes: Counter[int] = Counter()
    pmd = 0
    for event in events:
        if event.name == "rmap_ptes":
            sizes[event.args["nr"]] += 1
        elif event.name == "rmap_pmd":
            pmd += 1
        elif event.name == "rmap_page":
            if not event.args["compound"]:
                sizes[1] += 1
            elif not int(kpageflags[pfn_of(event.args["page"])]) >> HUGE & 1:
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


def _dequeued(events: list[Event], offset: int) -> int:
    """Folios that were on the deferred split queue when they were freed."""
    return sum(
        event.name == "split_dequeue" and event.args["next"] != event.args["page"] + offset
        for event in events
    )


def _freed(events: list[Event], folios: set[int]) -> list[list[int]]:
    """[pfn, order] of the freed folios that the page tables mapped, in order."""
    return [
        [event.args["pfn"], event.args["order"]]
        for event in events
        if event.name == "mm_page_free" and event.args["pfn"] in folios
    ]


# Counter -> the probe without which it cannot be known.
_SHOWN_BY = {
    "swap_entries": "swap_entries",
    "page_tables": "pte_table",
    "rmap_calls": "rmap",
    "rmap_pages": "rmap",
    "pmd_mappings": "rmap",
    "deferred_split_calls": "deferred_split",
    "deferred_split_queued": "deferred_split",
    "deferred_split_dequeued": "split_dequeue",
    "gather_slots": "free_calls",
    "gather_pages_peak": "free_pages",
    "gather_flushes": "free_calls",
    "tlb_flushes": "flush_range",
    "swapcache_checks": "swapcache_check",
    "swapcache_frees": "swapcache_delete",
    "free_calls": "free_calls",
    "release_calls": "release",
    "release_entries": "release",
    "lruvec_locks": "lruvec_lock",
}


def _counters(
    inside: list[Event], sizes: Counter[int], pmd: int, queue: int, flags: np.ndarray
) -> dict[str, int]:
    """What the events alone say; `queue` is the offset of the deferred split list in a folio."""
    number = Counter(event.name for event in inside)
    slots = [event.args["nr"] for event in inside if event.name == "free_calls"]
    released = [event.args["nr"] for event in inside if event.name in RELEASES]
    finish = next(i for i, event in enumerate(inside) if event.name == "tlb_finish")
    return {
        "swap_entries": sum(event.args.get("nr", 1) for event in inside if event.name == "swap_entries"),
        "pmd_mappings": pmd,
        "page_tables": number["pte_table"] + number["pmd_table"] + number["pud_table"],
        "rmap_calls": sizes.total(),
        "rmap_pages": sum(size * calls for size, calls in sizes.items()),
        "deferred_split_calls": number["deferred_split"],
        "deferred_split_queued": _newly_queued(inside, flags, queue),
        "deferred_split_dequeued": _dequeued(inside, queue),
        "gather_slots": sum(slots),
        "gather_pages_peak": sum(event.name == "free_pages" for event in inside[finish:]),
        "gather_flushes": len(flush_groups(inside)),
        "tlb_flushes": number["flush_range"],
        "swapcache_checks": number["swapcache_check"],
        "swapcache_frees": number["swapcache_delete"],
        "free_calls": number["free_calls"],
        "release_calls": len(released),
        "release_entries": sum(released),
        "lruvec_locks": number["lruvec_lock"],
    }


def observe(
    events: Iterable[Event], pid: int, probed: Mapping[str, str], leaves: Leaves, flags: np.ndarray
) -> Observed:
    """One exit as the kernel made it.

    :param probed: event -> kernel symbol, for the probes that the kernel accepted
    :param flags: kpageflags of every pfn
    """
    inside, preempted = window(events, pid)
    inside = of_release(without_drains(inside))
    sizes, pmd = _rmap(inside, flags)
    queue = DEFERRED_LIST.get(probed.get("deferred_split", ""), 0)
    shown = set(probed)
    shown |= {"rmap"} if shown & RMAPS else set()
    shown |= {"release"} if shown & set(RELEASES) else set()
    counters = {
        name: value
        for name, value in _counters(inside, sizes, pmd, queue, flags).items()
        if _SHOWN_BY[name] in shown
    }
    freed = _freed(inside, set(heads(flags)[leaves.mapped].tolist()))
    counters |= {
        "ptes": len(leaves.pte_vpn),
        "special_ptes": leaves.special,
        "hugetlb_pages": leaves.hugetlb,
        "folios_freed": len(freed),
        "pages_freed": sum(1 << order for _, order in freed),
    }
    released = [event.args["nr"] for event in inside if event.name in RELEASES]
    return Observed(counters, dict(sorted(sizes.items())), released, flush_groups(inside), freed, preempted)
