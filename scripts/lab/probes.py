# SPDX-License-Identifier: Apache-2.0
"""What is traced in the guest: the probes of `replay validate`, and what only the lab looks at."""

from collections.abc import Iterable

from replay.validate import probes
from replay.validate.probes import Probe

# Bytes from a large folio's first struct page (64 bytes each) to its deferred split list: in the third page,
# behind flags and two words of padding (v6.1), or behind flags and compound_head (v6.12).
DEFERRED_LIST = {"deferred_split_huge_page": 152, "deferred_split_folio": 144}

# Ahead of the others: of the probes of one event the first whose function the kernel has counts.
PROBES = (
    Probe("p", "deferred_split", "deferred_split_huge_page", "page={0}:x64 next=+152({0}):x64"),
    Probe("p", "deferred_split", "deferred_split_folio", "page={0}:x64 next=+144({0}):x64"),
    Probe("p", "split_dequeue", "free_transhuge_page", "page={0}:x64 next=+152({0}):x64"),
    Probe("p", "split_dequeue", "__folio_unqueue_deferred_split", "page={0}:x64 next=+144({0}):x64"),
    Probe("p", "split_dequeue", "__folio_undo_large_rmappable", "page={0}:x64 next=+144({0}):x64"),
    Probe("p", "lruvec_lock", "folio_lruvec_lock_irqsave"),
    # of page tables, where the function is the one that frees them
    Probe("p", "table_batch", "call_rcu", "func={1}:x64"),
    Probe("p", "huge_free", "free_huge_folio", "page={0}:x64"),
    Probe("p", "huge_free", "free_huge_page", "page={0}:x64"),
    Probe("p", "resched", "schedule"),
    Probe("p", "walk_mm", "walk_page_range", "mm={0}:x64"),
    *probes.PROBES,
)
# Of one architecture: what it has no function for that could be probed. `c`: each call of a function.
OWN_PROBES = {
    # struct mmu_gather: mm, the batch of page tables, start and end, then bits
    "aarch64": (Probe("c", "tlb_flush", "tlb_flush", "bits=+32({0}):x32"),),
}
FULL_MM, FREED_TABLES = 1 << 0, 1 << 2
# A tracepoint: `t`, its group and its name.
TRACEPOINTS = "t kmem mm_page_free\n"


def lines(machine: str, chosen: Iterable[Probe] = PROBES) -> str:
    """The text that the guest's init reads: one probe a line, its kind first."""
    every = (*chosen, *OWN_PROBES.get(machine, ()))
    said = [f"{probe.kind} {probe.event} {probe.symbol} {probe.fetched(machine)}" for probe in every]
    return "".join(f"{line.rstrip()}\n" for line in said) + TRACEPOINTS
