# SPDX-License-Identifier: Apache-2.0
"""What was captured against RssAnon, RssFile, RssShmem, VmSwap and HugetlbPages of /proc/PID/status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from replay.capture.extents import ANON, Extents
from replay.jit.compiled import I32, I64, U8, I64s, compiled, inline
from replay.procfs.files import Status, Vma
from replay.trace.kpageflags import KPF_SWAPBACKED, bit
from replay.trace.schema import HUGETLB, MARKER, SPECIAL, SWAP

SWAPBACKED: Final = bit(KPF_SWAPBACKED)

SUMS: Final = ("anon", "file", "shmem", "swap", "hugetlb", "special", "marker")
IN_ANON, IN_FILE, IN_SHMEM, IN_SWAP, IN_HUGETLB, IN_SPECIAL, IN_MARKER = range(7)
"""Fields of `Totals`, and their places in it."""


@dataclass
class Totals:
    """Pages captured, summed up; by_vma: those that smaps counts, by the number of their VMA."""

    anon: int = 0
    file: int = 0
    shmem: int = 0
    swap: int = 0
    hugetlb: int = 0
    special: int = 0
    marker: int = 0
    by_vma: dict[int, int] = field(default_factory=dict)


class Figure(NamedTuple):
    """One figure of /proc/PID/status, in pages, with the cause if it differs from what was captured."""

    name: str
    captured: int
    reported: int
    cause: str = ""


def add_extents(totals: Totals, rows: Extents) -> None:
    """Add some rows."""
    if not len(rows.vpn):
        return
    sums = np.zeros(len(SUMS), np.int64)
    by_vma = np.zeros(int(rows.vma[-1]) + 1, np.int64)
    _add(rows.vma, rows.kind, rows.kpageflags.view(np.int64), rows.pages.view(np.int32), sums, by_vma)
    for name, pages in zip(SUMS, sums.tolist(), strict=True):
        setattr(totals, name, getattr(totals, name) + pages)
    for vma in np.flatnonzero(by_vma).tolist():
        totals.by_vma[vma] = totals.by_vma.get(vma, 0) + int(by_vma[vma])


@inline
def _which(kind: int, flags: int) -> int:
    """The place in `SUMS`. RssShmem is what mm_counter_file() says: not anonymous, swap-backed."""
    if kind == SWAP:
        return IN_SWAP
    if kind == SPECIAL:
        return IN_SPECIAL
    if kind == MARKER:
        return IN_MARKER
    if kind == HUGETLB:
        return IN_HUGETLB
    if flags & ANON != 0:
        return IN_ANON
    return IN_SHMEM if flags & SWAPBACKED != 0 else IN_FILE


@compiled
def _add(vma: I32, kind: U8, flags: I64, pages: I32, sums: I64, by_vma: I64) -> int:
    """Add up pages, as in `SUMS`, and those that smaps counts by VMA."""
    for row in range(len(vma)):
        which = _which(kind[row], flags[row])
        sums[which] += pages[row]
        if which != IN_SPECIAL and which != IN_MARKER:
            by_vma[vma[row]] += pages[row]
    return len(vma)


@compiled
def _add_each(vma: I32, owner: I64, kind: U8, flags: I64, pages: I32, sums: I64s) -> int:
    """Add up pages, as in `SUMS`, of each owner of VMAs."""
    for row in range(len(vma)):
        sums[owner[vma[row]], _which(kind[row], flags[row])] += pages[row]
    return len(vma)


def by_owner(rows: Extents, owner: I64, owners: int) -> list[Totals]:
    """Pages of rows whose VMAs belong to different address spaces. owner: int64, shape (vmas,)."""
    sums = np.zeros((owners, len(SUMS)), np.int64)
    _add_each(rows.vma, owner, rows.kind, rows.kpageflags.view(np.int64), rows.pages.view(np.int32), sums)
    found = [Totals() for _ in range(owners)]
    for totals, of_one in zip(found, sums.tolist(), strict=True):
        for name, pages in zip(SUMS, of_one, strict=True):
            setattr(totals, name, pages)
    return found


def unaccounted(totals: Totals, status: Status) -> dict[str, int]:
    """By how many pages rows exceed the figures of `FIGURES`, where that is not 0; and those of no figure."""
    reported = status._asdict() | {"special": 0, "marker": 0}
    ours = {
        "rss_anon": totals.anon,
        "rss_file": totals.file,
        "rss_shmem": totals.shmem,
        "swap": totals.swap,
        "hugetlb": totals.hugetlb,
        "special": totals.special,
        "marker": totals.marker,
    }
    return {name: pages - reported[name] for name, pages in ours.items() if pages != reported[name]}


def reconcile(totals: Totals, status: Status, vmas: Sequence[Vma], changed: int) -> tuple[Figure, ...]:
    """Compare with the figures of the kernel; every difference has a cause."""
    anonymous = sum(vma.anonymous for vma in vmas)
    resident = sum(vma.rss for vma in vmas)
    # v6.1 leaves PMD mappings of a PROT_NONE VMA out of smaps
    hidden = sum(
        totals.by_vma.get(number, 0) - vma.rss
        for number, vma in enumerate(vmas)
        if vma.perms.startswith("---") and totals.by_vma.get(number, 0) > vma.rss and not vma.has("ht")
    )
    anon_agrees = totals.anon in (anonymous, anonymous + hidden)
    file_agrees = totals.anon + totals.file + totals.shmem in (resident, resident + hidden)
    rss = [
        ("RssAnon", totals.anon, status.rss_anon, anon_agrees),
        ("RssFile", totals.file, status.rss_file, file_agrees),
        ("RssShmem", totals.shmem, status.rss_shmem, file_agrees),
    ]
    return (
        *(
            Figure(name, ours, theirs, _rss_cause(ours, theirs, agrees, changed))
            for name, ours, theirs, agrees in rss
        ),
        Figure("VmSwap", totals.swap, status.swap, _swap_cause(totals, status.swap, changed)),
        Figure(
            "HugetlbPages", totals.hugetlb, status.hugetlb, _hugetlb_cause(totals, status.hugetlb, changed)
        ),
    )


def _rss_cause(captured: int, reported: int, smaps_agrees: bool, changed: int) -> str:
    if captured == reported:
        return ""
    if smaps_agrees:
        return "the kernel's figure is approximate, counted per CPU or thread; smaps agrees with the capture"
    return _changed(changed) or "smaps differs too: the kernel counts pages that pagemap does not show"


def _swap_cause(totals: Totals, reported: int, changed: int) -> str:
    if totals.swap == reported:
        return ""
    return _changed(changed) or "the kernel's figure is approximate, counted per CPU or thread"


def _hugetlb_cause(totals: Totals, reported: int, changed: int) -> str:
    if totals.hugetlb == reported:
        return ""
    return _changed(changed) or "page tables of hugetlb that processes share are counted once"


def _changed(changed: int) -> str:
    return f"{changed} entries changed while they were read" if changed else ""


def text(figures: Sequence[Figure], page_size: int) -> list[str]:
    """The line that shows all figures, and one more for each cause of a difference."""
    kib = page_size // 1024
    parts = [
        f"{figure.name} {figure.captured * kib} kB"
        + (f" (status: {figure.reported * kib} kB)" if figure.captured != figure.reported else "")
        for figure in figures
    ]
    causes: dict[str, list[str]] = {}
    for figure in figures:
        if figure.cause:
            causes.setdefault(figure.cause, []).append(figure.name)
    same = "as /proc/PID/status says" if not causes else "differs from /proc/PID/status"
    return [
        f"captured {', '.join(parts)}: {same}",
        *(f"{', '.join(names)}: {cause}" for cause, names in causes.items()),
    ]
