# SPDX-License-Identifier: Apache-2.0
"""Folios that the exit freed late or early: who took them out of an LRU batch, and who freed them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from replay.validate.tracefs import Event, number


@dataclass(frozen=True)
class Fate:
    """How a folio was freed after all.

    evidence: by whom, and when. thread: by whom, as in the events. lru_batch: it came out of an LRU batch. It
    was seen to leave one, or it was freed when all were emptied, or the watching thread freed it, which holds
    no other references. early: it was freed between capture and exit, so the page tables cannot have mapped
    it any more.
    """

    evidence: str
    thread: int
    lru_batch: bool
    early: bool = False


def fates(
    events: Iterable[Event],
    pfns: frozenset[int],
    captured_ns: int,
    began_ns: int,
    drained_ns: int | None,
    watching: frozenset[int],
) -> dict[int, Fate]:
    """The first free of each of some frames, by events of all tasks in order of time.

    captured_ns: when the capture began. began_ns: when the exit freed its first folio. drained_ns: when the
    emptying of LRU batches began; None if it was not possible. watching: the threads of this process.
    """
    left_batch: dict[int, Event] = {}
    found: dict[int, Fate] = {}
    for event in events:
        pfn = number(event, "pfn")
        if pfn not in pfns or pfn in found or event.time_ns < captured_ns:
            continue
        if event.time_ns < began_ns:
            if event.name == "mm_page_free":
                before = f"{(began_ns - event.time_ns) / 1000:.0f} us before the exit began to free"
                found[pfn] = Fate(f"freed by {_name(event.pid)}, {before}", event.pid, False, early=True)
            continue
        if event.name != "mm_page_free":
            left_batch[pfn] = event
            continue
        late = f"{(event.time_ns - began_ns) / 1000:.0f} us after the exit began to free"
        batch = left_batch.get(pfn)
        if drained_ns is not None and event.time_ns >= drained_ns:
            seen, out_of_batch = "freed when the LRU batches of all CPUs were emptied", True
        elif event.pid in watching:
            seen, out_of_batch = f"freed out of a batch of a CPU where replay ran, {late}", True
        elif batch and batch.pid == event.pid:
            seen, out_of_batch = f"left an LRU batch and was freed by {_name(event.pid)}, {late}", True
        else:
            seen, out_of_batch = f"freed by {_name(event.pid)}, {late}", False
        found[pfn] = Fate(seen, event.pid, out_of_batch)
    return found


def left_batches(
    events: Iterable[Event], pfns: frozenset[int], captured_ns: int, ended_ns: int
) -> dict[int, str]:
    """Frames that left an LRU batch between the capture and the end of the exit -> what was seen.

    The batch held no reference any more. events: of all tasks.
    """
    found: dict[int, str] = {}
    for event in events:
        pfn = number(event, "pfn")
        if event.name == "mm_page_free" or pfn not in pfns or not captured_ns <= event.time_ns <= ended_ns:
            continue
        late = (event.time_ns - captured_ns) / 1000
        found.setdefault(
            pfn, f"{_name(event.pid)} emptied its LRU batch {late:.0f} us after the capture began"
        )
    return found


def _name(pid: int) -> str:
    try:
        return f"thread {pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    except OSError:
        return f"thread {pid}"
