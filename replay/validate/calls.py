# SPDX-License-Identifier: Apache-2.0
"""The calls that the kernel made at one exit: events of `PROBES` -> counters of the replay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from replay.errors import ReplayError
from replay.validate.tracefs import Event, number

ENTRY, FINISH, FINISHED = "exit_mmap_entry", "tlb_finish", "tlb_finished"
"""Entry of exit_mmap(); entry and return of tlb_finish_mmu(), after which nothing is torn down."""

RELEASES: Final = ("release_pages", "folios_put_refs")
"""The release functions that exit_mmap() calls: the first until v6.8, the second since v6.9."""

DRAINS: Final = {"drain": "drained", "mlock_drain": "mlock_drained"}
"""Begin and end of emptying an LRU or mlock batch. It releases folios that were not gathered here."""

ARGUMENTS: Final = "arguments"
"""In `SHOWN_BY`: the arguments of the probed functions."""

_DRAINS: Final = ("drain", "drained")
_ALWAYS: Final = (ENTRY, FINISH, FINISHED)
SHOWN_BY: Final = {
    "swap_entries": (("swap_entries", ARGUMENTS),),
    "pmd_mappings": (("rmap_page", ARGUMENTS), ("rmap_pmd",)),
    "page_tables": (("pte_table", "pmd_table", "pud_table"),),
    "rmap_calls": (("rmap_page", ARGUMENTS), ("rmap_ptes",)),
    "rmap_pages": (("rmap_page", ARGUMENTS), ("rmap_ptes", ARGUMENTS)),
    "deferred_split_calls": (("deferred_split",),),
    "gather_slots": (("free_calls", ARGUMENTS),),
    "gather_pages_peak": (("free_pages",),),
    "gather_flushes": (("free_calls", "tlb_flush_mmu"),),
    "tlb_flushes": (("flush_range", ARGUMENTS),),
    "swapcache_checks": (("swapcache_check",),),
    "swapcache_frees": (("swapcache_delete", "swap_entries"),),
    "free_calls": (("free_calls",),),
    "release_calls": (("release_pages", *_DRAINS), ("folios_put_refs", *_DRAINS)),
    "release_entries": (("release_pages", *_DRAINS, ARGUMENTS), ("folios_put_refs", *_DRAINS, ARGUMENTS)),
}
"""Counter -> rows of events; all events of any one row show it. In the order of the replay's counters."""

_AT_SWAP_ENTRY: Final = frozenset({"swapcache_delete", "lruvec_lock", "split_dequeue"})
_NOT_AT_SWAP_ENTRY: Final = frozenset(
    {
        "rmap_page",
        "rmap_ptes",
        "rmap_pmd",
        "free_calls",
        "swapcache_check",
        "tlb_flush_mmu",
        FINISH,
        *RELEASES,
    }
)


def shown(probed: Collection[str], arguments: bool) -> tuple[str, ...]:
    """The counters that some probed events show.

    arguments: whether the arguments of their functions are fetched.
    """
    known = {*probed, ARGUMENTS} if arguments else set(probed)
    if not known.issuperset(_ALWAYS):
        return ()
    return tuple(name for name, rows in SHOWN_BY.items() if any(known.issuperset(row) for row in rows))


def window(events: Iterable[Event], thread: int | None = None) -> list[Event]:
    """Events from the entry of exit_mmap() to the return of its tlb_finish_mmu(); empty if there is none.

    thread: whose exit_mmap(); None takes the first one. Events of other tasks are kept, because they show
    preemption. Events in interrupts are dropped, because the teardown did not cause them.
    """
    inside: list[Event] = []
    for event in events:
        if event.interrupt:
            continue
        if not inside:
            if event.name == ENTRY and thread in (None, event.pid):
                inside.append(event)
            continue
        inside.append(event)
        if event.name == FINISHED and event.pid == inside[0].pid:
            return inside
    if any(event.name == FINISH and event.pid == inside[0].pid for event in inside):
        raise _missed()
    return []


def of_teardown(inside: Sequence[Event]) -> list[Event]:
    """The events of a window that the teardown itself caused. Raises `ReplayError` if a return was missed."""
    entry = inside[0]
    own = [
        event
        for event in inside
        if event.pid == entry.pid
        and not (event.name == "flush_range" and event.fields.get("mm") != entry.fields.get("mm"))
    ]
    return without_cached_swap(without_hugetlb_rmap(without_drains(own)))


def without_drains(events: Iterable[Event]) -> list[Event]:
    """Events without those of emptying LRU or mlock batches. Page frees are kept wherever they happen."""
    depth = 0
    kept = []
    for event in events:
        if event.name in DRAINS:
            depth += 1
        elif event.name in DRAINS.values():
            depth -= 1
        elif not depth or event.name == "mm_page_free":
            kept.append(event)
    if depth:
        raise _missed()
    return kept


def without_hugetlb_rmap(events: Iterable[Event]) -> list[Event]:
    """Events without the rmap removal of hugetlb's huge pages: page_remove_rmap() takes down both these and
    THPs.
    """
    hugetlb = False
    kept = []
    for event in events:
        if event.name in ("hugetlb", "hugetlb_done"):
            hugetlb = event.name == "hugetlb"
        elif not (hugetlb and event.name == "rmap_page"):
            kept.append(event)
    return kept


def without_cached_swap(events: Iterable[Event]) -> list[Event]:
    """Events without what freeing a swap entry does to a folio in the swap cache that nothing maps.

    The kernel drops such a folio at once. It never enters the gather, and procfs shows only the entry.
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


def flush_groups(events: Iterable[Event]) -> list[list[Event]]:
    """For each flush of the gather that released anything, its chunks."""
    groups: list[list[Event]] = [[]]
    for event in events:
        if event.name in ("tlb_flush_mmu", FINISH):
            groups.append([])
        elif event.name == "free_calls":
            groups[-1].append(event)
    return [group for group in groups if group]


def rmap_sizes(events: Iterable[Event]) -> Counter[int]:
    """Pages of a PTE-level rmap call -> calls."""
    sizes: Counter[int] = Counter()
    for event in events:
        if event.name == "rmap_ptes":
            sizes[_word(event, "nr")] += 1
        elif event.name == "rmap_page" and not _word(event, "compound"):
            sizes[1] += 1
    return sizes


def counts(events: Sequence[Event]) -> dict[str, int]:
    """All counters, from the teardown's own events. `shown` says which of them are meaningful.

    A counter that needs arguments is 0 where they are not fetched.
    """
    times = Counter(event.name for event in events)
    sizes = rmap_sizes(events)
    released = [_word(event, "nr") for event in events if event.name in RELEASES]
    finish = next(index for index, event in enumerate(events) if event.name == FINISH)
    pmd = sum(event.name == "rmap_page" and _word(event, "compound") != 0 for event in events)
    return {
        "swap_entries": sum(_word(event, "nr", 1) for event in events if event.name == "swap_entries"),
        "pmd_mappings": times["rmap_pmd"] + pmd,
        "page_tables": times["pte_table"] + times["pmd_table"] + times["pud_table"],
        "rmap_calls": sizes.total(),
        "rmap_pages": sum(size * calls for size, calls in sizes.items()),
        "deferred_split_calls": times["deferred_split"],
        "gather_slots": sum(_word(event, "nr") for event in events if event.name == "free_calls"),
        # the gather frees its own pages one by one after it has released everything
        "gather_pages_peak": sum(event.name == "free_pages" for event in events[finish:]),
        "gather_flushes": len(flush_groups(events)),
        "tlb_flushes": times["flush_range"],
        "swapcache_checks": times["swapcache_check"],
        "swapcache_frees": times["swapcache_delete"],
        "free_calls": times["free_calls"],
        "release_calls": len(released),
        "release_entries": sum(released),
    }


def _word(event: Event, field: str, otherwise: int = 0) -> int:
    """An argument of a probed function, if it is fetched."""
    return number(event, field) if field in event.fields else otherwise


def _missed() -> ReplayError:
    return ReplayError(
        "the kernel missed the return of a probed function (see kprobe_profile): run validate again "
        "while fewer other programs run"
    )
