# SPDX-License-Identifier: Apache-2.0
"""What the kernel did at one exit: the events of `exit_mmap()` as the sequence of freed folios."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from replay.validate.tracefs import Event, number

EVENTS: Final = (
    "kmem/mm_page_free",
    "kmem/mm_page_free_batched",
    "tlb/tlb_flush",
    "mmap/exit_mmap",
    "sched/sched_switch",
)
"""Tracepoints as "system/name"; `sched_switch` shows preemption."""

EVIDENCE: Final = ("kmem/mm_page_free", "pagemap/mm_lru_insertion", "pagemap/mm_lru_activate")
"""Tracepoints of all tasks that show who frees a folio later, and when it leaves an LRU batch."""

RECORD_BYTES: Final = 64
"""Ring-buffer bytes for each folio freed: mm_page_free takes 28, mm_page_free_batched 20."""
CALL_BYTES: Final = 128
"""For the probed calls of each page: rmap removal, swap cache check, deferred split take at most 28 each."""
SPARE_BYTES: Final = 1 << 18
"""Bytes for everything else between exit stop and exit_mmap(): page tables, batch pages, switches."""

RUNNING: Final = 0
TASK_REPORT_MAX: Final = 0x100
"""prev_state of a task that yielded, and of one preempted: include/trace/events/sched.h."""


@dataclass(frozen=True)
class Observation:
    """What one thread did between its release from the exit stop and the end of its exit_mmap().

    thread: its number in the events, which is that of the initial PID namespace; None if it freed nothing.
    freed: (pfn, order) of the folios that its page tables mapped, in the order of the kernel's frees.
    batch_ends: positions in `freed` (1: after the first) where a batch of frees ended, as
    mm_page_free_batched shows. other_frees: frees of anything else. again: frees of a frame that had been
    freed before and allocated again. tlb_flushes: TLB flushes that the kernel reported. preempted, slept: how
    often the thread lost its CPU while runnable, or waiting. finished: whether exit_mmap() ended in this
    thread; also false if the kernel lacks that tracepoint (see `has_end`). began_ns, ended_ns: times of the
    first free and of the end, by the clock of the events.
    """

    thread: int | None
    freed: tuple[tuple[int, int], ...]
    batch_ends: frozenset[int]
    other_frees: int
    again: int
    tlb_flushes: int
    preempted: int
    slept: int
    finished: bool
    has_end: bool
    began_ns: int
    ended_ns: int


def buffer_bytes(folios: int, probed_pages: int = 0) -> int:
    """Bytes of ring buffer that the teardown of so many folios needs on one CPU.

    probed_pages: page-table entries whose calls are recorded.
    """
    return SPARE_BYTES + RECORD_BYTES * folios + CALL_BYTES * probed_pages


def observe(events: Sequence[Event], known: frozenset[str], is_mapped: Callable[[int], bool]) -> Observation:
    """Events of one thread, in order of time -> what it freed of its address space.

    known: names of the events that were recorded. is_mapped: whether the page tables mapped the folio of a
    frame. Frees in interrupts do not count: RCU callbacks run there.
    """
    has_end = "exit_mmap" in known
    teardown = list(_until_end(events))
    finished = bool(teardown) and teardown[-1].name == "exit_mmap"
    freed: list[tuple[int, int]] = []
    seen: set[int] = set()
    ends: set[int] = set()
    other = again = 0
    first = last = 0
    for event in teardown:
        if event.interrupt:
            continue
        last = event.time_ns
        if event.name == "mm_page_free":
            pfn, order = number(event, "pfn"), number(event, "order")
            if pfn in seen:
                again += 1
            elif is_mapped(pfn):
                first = first or event.time_ns
                seen.add(pfn)
                freed.append((pfn, order))
            else:
                other += 1
        elif event.name == "mm_page_free_batched" and number(event, "pfn") in seen:
            # this event comes once for each folio of a batch, after all of them were freed
            ends.add(len(freed))
    thread = next((event.pid for event in teardown if event.name.startswith("mm_page_free")), None)
    # a switch is recorded in the task that is left: the one that brings our thread back is another task's
    left = [event for event in teardown if event.name == "sched_switch" and event.pid == thread]
    preempted = preemptions(left, thread)
    return Observation(
        thread=thread,
        freed=tuple(freed),
        batch_ends=frozenset(ends),
        other_frees=other,
        again=again,
        tlb_flushes=sum(event.name == "tlb_flush" for event in teardown),
        preempted=preempted,
        slept=len(left) - preempted,
        finished=finished,
        has_end=has_end,
        began_ns=first or last,
        ended_ns=last,
    )


def preemptions(events: Iterable[Event], thread: int | None) -> int:
    """How often a thread lost its CPU although it could have run on."""
    return sum(
        event.name == "sched_switch"
        and event.pid == thread
        and number(event, "prev_state") in (RUNNING, TASK_REPORT_MAX)
        for event in events
    )


def _until_end(events: Iterable[Event]) -> Iterable[Event]:
    """Events up to the end of exit_mmap(). What the task frees later was not mapped."""
    for event in events:
        yield event
        if event.name == "exit_mmap":
            return
