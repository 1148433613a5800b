# SPDX-License-Identifier: Apache-2.0
"""From the events of one exit to the counters of the replay, as the kernel made them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from lab.pages import SWAPCACHE, Leaves, heads
from lab.probes import DEFERRED_LIST, FREED_TABLES, FULL_MM
from replay.teardown.counters import COUNTERS
from replay.validate import calls
from replay.validate.tracefs import Event, number

STRUCT_PAGE = 64


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


def _newly_queued(events: list[Event], kpageflags: np.ndarray, offset: int, struct_pages: int) -> int:
    """Folios that a deferred split call found off the queue; those in the swap cache are not queued."""
    queued = {
        number(event, "page")
        for event in events
        if event.name == "deferred_split" and number(event, "next") == number(event, "page") + offset
    }
    pfns = [(page - struct_pages) // STRUCT_PAGE for page in queued]
    return sum(not int(kpageflags[pfn]) >> SWAPCACHE & 1 for pfn in pfns)


def _dequeued(events: list[Event], offset: int) -> int:
    """Folios that were on the deferred split queue when they were freed."""
    return sum(
        event.name == "split_dequeue" and number(event, "next") != number(event, "page") + offset
        for event in events
    )


def _tlb_flushes(events: list[Event]) -> int:
    """Calls of arm64's tlb_flush() that flush: of a whole address space those behind freed page tables."""
    bits = [number(event, "bits") for event in events if event.name == "tlb_flush"]
    return sum(not word & FULL_MM or bool(word & FREED_TABLES) for word in bits)


def _freed(events: list[Event], folios: set[int]) -> list[list[int]]:
    """[pfn, order] of the freed folios that the page tables mapped, in order."""
    return [
        [number(event, "pfn"), number(event, "order")]
        for event in events
        if event.name == "mm_page_free" and number(event, "pfn") in folios
    ]


# Counters beside those of `replay validate` -> the event that shows them.
SHOWN_BY = {
    "deferred_split_queued": "deferred_split",
    "deferred_split_dequeued": "split_dequeue",
    "lruvec_locks": "lruvec_lock",
    "tlb_flushes": "tlb_flush",
    "table_batches": "table_batch",
}


def _counters(
    own: list[Event], probed: Mapping[str, str], flags: np.ndarray, struct_pages: int, free_tables: int
) -> dict[str, int]:
    """What the events alone say, of what the probes can show."""
    made = calls.counts(own)
    counters = {name: made[name] for name in calls.shown(probed, arguments=True)}
    # the offset of the deferred split list in a folio
    queue = DEFERRED_LIST.get(probed.get("deferred_split", ""), 0)
    extra = {
        "deferred_split_queued": _newly_queued(own, flags, queue, struct_pages),
        "deferred_split_dequeued": _dequeued(own, queue),
        "lruvec_locks": sum(event.name == "lruvec_lock" for event in own),
        "tlb_flushes": _tlb_flushes(own),
        "table_batches": sum(
            event.name == "table_batch" and number(event, "func") == free_tables for event in own
        ),
    }
    counters |= {name: value for name, value in extra.items() if SHOWN_BY[name] in probed}
    return {name: counters[name] for name in COUNTERS if name in counters}


def observe(
    events: Iterable[Event],
    pid: int,
    probed: Mapping[str, str],
    leaves: Leaves,
    flags: np.ndarray,
    struct_pages: int,
    free_tables: int,
) -> Observed:
    """One exit as the kernel made it. Raises NoExitError, and ReplayError if a return probe was missed.

    :param probed: event -> kernel symbol, for the probes that the kernel accepted
    :param flags: kpageflags of every pfn
    :param struct_pages: kernel address of the struct page of frame 0
    :param free_tables: kernel address of the function that RCU calls for a batch of page tables
    """
    inside = calls.window(events, pid)
    if not inside:
        raise NoExitError("no complete exit_mmap() in the trace")
    own = calls.of_teardown(inside)
    freed = _freed(own, set(heads(flags)[leaves.mapped].tolist()))
    counters = _counters(own, probed, flags, struct_pages, free_tables) | {
        "ptes": len(leaves.pte_vpn),
        "special_ptes": leaves.special,
        "hugetlb_pages": leaves.hugetlb,
        "folios_freed": len(freed),
        "pages_freed": sum(1 << order for _, order in freed),
    }
    return Observed(
        counters=counters,
        rmap_sizes=dict(sorted(calls.rmap_sizes(own).items())),
        release_sizes=[number(event, "nr") for event in own if event.name in calls.RELEASES],
        flush_groups=[[number(event, "nr") for event in group] for group in calls.flush_groups(own)],
        freed=freed,
        preempted=any(event.pid != pid or event.name == "resched" for event in inside),
    )
