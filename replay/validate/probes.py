# SPDX-License-Identifier: Apache-2.0
"""Functions of the kernel whose calls at an exit are what the replay counts, as kprobe events.

A probe of one event may have several symbols: the first that the kernel has counts. Fetch arguments are those
of kprobe events (Documentation/trace/kprobetrace.rst), with `{0}` for the register of the first argument,
`{1}` for that of the second and so on.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from replay.errors import ReplayError
from replay.support.restore import Undo, append, remove_probes

REGISTERS: Final = {
    "x86_64": ("%di", "%si", "%dx", "%cx", "%r8", "%r9"),
    "aarch64": ("%x0", "%x1", "%x2", "%x3", "%x4", "%x5"),
}
"""Architecture -> registers of a function's arguments, as kprobe events name them."""

GROUP: Final = re.compile(r"replay_(\d+)")
"""The groups of our events. Each names the process ID of the replay that made it."""

MAX_ACTIVE: Final = 64
"""How many calls of one function return probes can follow at once, over all tasks. Further calls are missed.
"""


class Probe(NamedTuple):
    """A kprobe (`p`) or a return probe (`r`) of a function, and the event that it makes."""

    kind: str
    event: str
    symbol: str
    args: str = ""

    def fetched(self, machine: str) -> str:
        """Its fetch arguments for an architecture; none where the registers are not known."""
        return self.args.format(*REGISTERS[machine]) if machine in REGISTERS else ""


PROBES: Final = (
    Probe("p", "exit_mmap_entry", "exit_mmap", "mm={0}:x64"),
    Probe("p", "tlb_finish", "tlb_finish_mmu"),
    Probe("r", "tlb_finished", "tlb_finish_mmu"),
    Probe("p", "tlb_flush_mmu", "tlb_flush_mmu"),
    Probe("p", "flush_range", "flush_tlb_mm_range", "mm={0}:x64"),
    Probe("p", "free_calls", "free_pages_and_swap_cache", "nr={1}:s32"),
    Probe("p", "swapcache_check", "free_swap_cache"),
    # the first is that of v6.18 and v7.3
    Probe("p", "swapcache_delete", "swap_cache_del_folio"),
    Probe("p", "swapcache_delete", "delete_from_swap_cache"),
    Probe("p", "release_pages", "release_pages", "nr={1}:s32"),
    Probe("p", "folios_put_refs", "folios_put_refs", "nr=+0({0}):u8"),
    Probe("p", "rmap_page", "page_remove_rmap", "compound={2}:u8"),
    Probe("p", "rmap_ptes", "folio_remove_rmap_ptes", "nr={2}:s32"),
    Probe("p", "rmap_pmd", "folio_remove_rmap_pmd"),
    # page_remove_rmap() takes huge pages of hugetlb, too, down as compound ones
    Probe("p", "hugetlb", "__unmap_hugepage_range_final"),
    Probe("p", "hugetlb", "__unmap_hugepage_range"),
    Probe("r", "hugetlb_done", "__unmap_hugepage_range_final"),
    Probe("r", "hugetlb_done", "__unmap_hugepage_range"),
    Probe("p", "deferred_split", "deferred_split_folio"),
    Probe("p", "deferred_split", "deferred_split_huge_page"),
    # of v7.3, of v6.12 to v6.18, of v6.1
    Probe("p", "swap_entries", "swap_put_entries_direct", "nr={1}:s32"),
    Probe("p", "swap_entries", "free_swap_and_cache_nr", "nr={1}:s32"),
    Probe("p", "swap_entries", "free_swap_and_cache"),
    Probe("p", "pte_table", "___pte_free_tlb"),
    Probe("p", "pmd_table", "___pmd_free_tlb"),
    Probe("p", "pud_table", "___pud_free_tlb"),
    Probe("p", "free_pages", "free_pages"),
    Probe("p", "drain", "folio_batch_move_lru"),
    Probe("r", "drained", "folio_batch_move_lru"),
    Probe("p", "mlock_drain", "mlock_folio_batch"),
    Probe("p", "mlock_drain", "mlock_pagevec"),
    Probe("r", "mlock_drained", "mlock_folio_batch"),
    Probe("r", "mlock_drained", "mlock_pagevec"),
)

KALLSYMS: Final = Path("/proc/kallsyms")
_FUNCTION: Final = re.compile(r"^\S+ [tT] (\S+)$", re.MULTILINE)


def functions(probes: Iterable[Probe] = PROBES, kallsyms: Path = KALLSYMS) -> frozenset[str]:
    """The functions of some probes that the kernel has as such, not inlined into others."""
    return present({probe.symbol for probe in probes}, kallsyms)


def present(names: Iterable[str], kallsyms: Path = KALLSYMS) -> frozenset[str]:
    """The functions of a list that the kernel has."""
    return frozenset(names).intersection(_FUNCTION.findall(kallsyms.read_text()))


def chosen(present: Collection[str], probes: Sequence[Probe] = PROBES) -> list[Probe]:
    """For each event the first probe whose function the kernel has, in order."""
    found: dict[str, Probe] = {}
    for probe in probes:
        if probe.symbol in present:
            found.setdefault(probe.event, probe)
    return list(found.values())


def available(tracefs: Path) -> bool:
    """Whether this kernel has kprobe events."""
    return (tracefs / "kprobe_events").exists()


def make(tracefs: Path, undo: Undo, group: str, probes: Iterable[Probe], machine: str) -> list[str]:
    """Make kprobe events -> those that the kernel accepted, as "system/name".

    `undo` learns of their removal before the first is made. An event that the kernel refuses is left out: its
    function must not be probed, or two functions have that name. Raises `ReplayError` if no event may be
    made.
    """
    file = tracefs / "kprobe_events"
    undo.remove_probes(file, group)
    made = []
    for probe in probes:
        kind = f"r{MAX_ACTIVE}" if probe.kind == "r" else probe.kind
        line = f"{kind}:{group}/{probe.event} {probe.symbol} {probe.fetched(machine)}".rstrip()
        try:
            append(file, line)
        except PermissionError as error:
            raise ReplayError(
                f"no right to make kprobe events ({error.strerror}): boot without kernel lockdown"
            ) from None
        except OSError:
            continue
        made.append(f"{group}/{probe.event}")
    return made


def remove_stale(tracefs: Path) -> None:
    """Remove kprobe events of replay processes that have ended without cleaning up."""
    file = tracefs / "kprobe_events"
    if not file.exists():
        return
    groups = {line.partition(":")[2].partition("/")[0] for line in file.read_text().splitlines()}
    for group in groups:
        owner = GROUP.fullmatch(group)
        if owner and not Path(f"/proc/{owner[1]}").exists():
            with contextlib.suppress(OSError):
                remove_probes(file, group)
