"""What is traced in the guest: the probes of `replay validate`, and what only the lab looks at.

Fetch arguments are those of kprobe events on x86-64: `%di` is the first argument, `%si` the second.
"""

from collections.abc import Iterable

from replay.validate import probes
from replay.validate.probes import Probe

MACHINE = "x86_64"

# Bytes from a large folio's first struct page (64 bytes each) to its deferred split list: in the third page,
# behind flags and two words of padding (v6.1), or behind flags and compound_head (v6.12).
DEFERRED_LIST = {"deferred_split_huge_page": 152, "deferred_split_folio": 144}

# Ahead of the others: of the probes of one event the first whose function the kernel has counts.
PROBES = (
    Probe("p", "deferred_split", "deferred_split_huge_page", "page=%di:x64 next=+152(%di):x64"),
    Probe("p", "deferred_split", "deferred_split_folio", "page=%di:x64 next=+144(%di):x64"),
    Probe("p", "split_dequeue", "free_transhuge_page", "page=%di:x64 next=+152(%di):x64"),
    Probe("p", "split_dequeue", "__folio_unqueue_deferred_split", "page=%di:x64 next=+144(%di):x64"),
    Probe("p", "split_dequeue", "__folio_undo_large_rmappable", "page=%di:x64 next=+144(%di):x64"),
    Probe("p", "lruvec_lock", "folio_lruvec_lock_irqsave"),
    Probe("p", "huge_free", "free_huge_folio", "page=%di:x64"),
    Probe("p", "huge_free", "free_huge_page", "page=%di:x64"),
    Probe("p", "resched", "schedule"),
    Probe("p", "walk_mm", "walk_page_range", "mm=%di:x64"),
    *probes.PROBES,
)
# A tracepoint: `t`, its group and its name.
TRACEPOINTS = "t kmem mm_page_free\n"


def lines(chosen: Iterable[Probe] = PROBES) -> str:
    """The text that the guest's init reads: one probe a line, kprobe (`p`) or return probe (`r`)."""
    said = [f"{probe.kind} {probe.event} {probe.symbol} {probe.fetched(MACHINE)}" for probe in chosen]
    return "".join(f"{line.rstrip()}\n" for line in said) + TRACEPOINTS
