# SPDX-License-Identifier: Apache-2.0
"""Events of one exit -> the folios that it freed, in order."""

from __future__ import annotations

from replay.validate.observe import observe
from replay.validate.tracefs import Event

THREAD = 4711


def event(time, name, *, pid=THREAD, interrupt=False, **fields) -> Event:
    return Event(time, 0, name, pid, interrupt, fields)


def test_observation_takes_the_first_free_of_each_mapped_frame():
    names = frozenset({"mm_page_free", "mm_page_free_batched", "exit_mmap", "sched_switch"})
    events = [
        event(10, "mm_page_free", pfn=7, order=0),
        event(11, "mm_page_free", pfn=512, order=9),
        event(12, "mm_page_free", pfn=70, order=0, interrupt=True),
        event(13, "mm_page_free_batched", pfn=7),
        event(14, "sched_switch", prev_pid=THREAD, prev_state=0, next_pid=1),
        event(14, "sched_switch", pid=1, prev_pid=1, prev_state=1, next_pid=THREAD),
        event(15, "mm_page_free", pfn=999, order=0),
        event(16, "mm_page_free", pfn=7, order=0),
        event(17, "exit_mmap", mm=1, mt=1),
        event(18, "mm_page_free", pfn=8, order=0),
    ]
    seen = observe(events, names, lambda pfn: pfn < 900)
    assert seen.freed == ((7, 0), (512, 9))
    assert seen.batch_ends == {2}
    assert (seen.other_frees, seen.again, seen.preempted, seen.slept) == (1, 1, 1, 0)
    assert (seen.finished, seen.began_ns, seen.ended_ns) == (True, 10, 17)
