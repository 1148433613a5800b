# SPDX-License-Identifier: Apache-2.0
"""The page state of a dumped case: folio heads, leaf entries of the page tables, what they map."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

HEAD, TAIL, HUGE, ANON, SWAPCACHE, ZERO_PAGE = 15, 16, 17, 12, 13, 24  # kpageflags bits
LEVEL_SHIFT = np.uint64(60)
PRESENT = 1
_AREA = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")
_LEAF = np.dtype([("where", "<u8"), ("entry", "<u8")])


class Layout(NamedTuple):
    """How page-table entries of an architecture say what they are.

    frame: the bits of the frame, with pages of 4 KiB. inverted: the frame of PROT_NONE entries is (L1TF).
    prot_none: bits of entries that are not PRESENT and yet map a page. dirty: an entry is dirty if under one
    of these masks it has that value. contiguous: the bit of blocks of contiguous PTEs, where teardown looks
    at it.
    """

    frame: int
    inverted: bool
    prot_none: int
    special: int
    dirty: tuple[tuple[int, int], ...]
    contiguous: int = 0


_X86_64 = Layout(
    frame=0x000FFFFFFFFFF000, inverted=True, prot_none=1 << 8, special=1 << 9, dirty=((1 << 6, 1 << 6),)
)
# Write-protected dirty entries keep the bit elsewhere, so that they are not taken for shadow stack entries:
# Linux kernel commit fca4d413c5f9 "x86/mm: Introduce _PAGE_SAVED_DIRTY" (in v6.6).
_X86_64_SAVED = _X86_64._replace(dirty=((1 << 6, 1 << 6), (1 << 58, 1 << 58)))
# Dirty by software (bit 55), or writable (51) and not read-only (7), which the processor clears at a write.
_ARM64 = Layout(
    frame=0x0000FFFFFFFFF000,
    inverted=False,
    prot_none=1 << 58,
    special=1 << 56,
    dirty=((1 << 55, 1 << 55), (1 << 51 | 1 << 7, 1 << 51)),
)
_ARM64_CONTPTE = _ARM64._replace(contiguous=1 << 52)
# The bit that says "not global" in an entry that is present: since v6.10, when userfaultfd took bit 58.
_ARM64_UFFD_WP = _ARM64_CONTPTE._replace(prot_none=1 << 11)


def layout_of(machine: str, version: tuple[int, int]) -> Layout:
    """The entries of a kernel's version on an architecture."""
    if machine == "aarch64":
        return next(
            layout
            for since, layout in (((6, 10), _ARM64_UFFD_WP), ((6, 9), _ARM64_CONTPTE), ((0, 0), _ARM64))
            if version >= since
        )
    return _X86_64_SAVED if version >= (6, 6) else _X86_64


def _bit(flags: np.ndarray, number: int) -> np.ndarray:
    return (flags >> np.uint64(number)) & np.uint64(1) != 0


def heads(kpageflags: np.ndarray) -> np.ndarray:
    """For each pfn, the pfn of its folio's head page (itself for order-0 pages)."""
    pfns = np.arange(len(kpageflags), dtype=np.int64)
    return np.maximum.accumulate(np.where(_bit(kpageflags, TAIL), 0, pfns))


@dataclass(frozen=True)
class Leaves:
    """Present leaf entries of the page tables.

    `pte_*`: entries of PTE tables; `pmd_*`: huge pages that are not hugetlb; both without the entries that
    have no rmap, which `special` counts: zero pages of either size. vpn and pfn in pages.
    """

    pte_vpn: np.ndarray
    pte_pfn: np.ndarray
    pte_dirty_file: np.ndarray  # bool: dirty in the entry, and not anonymous
    pte_contiguous: np.ndarray | None  # bool: one of a block of contiguous entries; None if there are none
    pmd_vpn: np.ndarray
    pmd_pfn: np.ndarray
    special: int
    hugetlb: int

    @property
    def mapped(self) -> np.ndarray:
        """The pfns that the entries name (of a PMD entry: its first page)."""
        return np.concatenate([self.pte_pfn, self.pmd_pfn])


def _raw_frames(smaps: str, page_size: int) -> Iterator[tuple[int, int]]:
    """(first page, end page) of VM_PFNMAP areas: the kernel's pagemap leaves their entries out."""
    start = end = 0
    for line in smaps.splitlines():
        if found := _AREA.match(line):
            start, end = (int(address, 16) // page_size for address in found.groups())
        elif line.startswith("VmFlags:") and "pf" in line.split():
            yield start, end


def decode(raw: bytes, smaps: str, kpageflags: np.ndarray, layout: Layout, page_size: int) -> Leaves:
    """Decode the collector's `leaves.bin`."""
    leaves = np.frombuffer(raw, _LEAF)
    vpn = (leaves["where"] & np.uint64((1 << 60) - 1)).astype(np.int64)
    hidden = np.zeros(len(leaves), bool)
    for start, end in _raw_frames(smaps, page_size):
        hidden |= (vpn >= start) & (vpn < end)
    leaves, vpn = leaves[~hidden], vpn[~hidden]
    level = (leaves["where"] >> LEVEL_SHIFT).astype(np.int64)
    entry = leaves["entry"]
    present = entry & np.uint64(PRESENT | layout.prot_none) != 0
    inverted = layout.inverted & (entry & np.uint64(PRESENT) == 0)
    frame = np.where(inverted, ~entry, entry) & np.uint64(layout.frame)
    pfn = (frame // np.uint64(page_size)).astype(np.int64)
    known = pfn < len(kpageflags)  # device memory has no struct page to show
    flags = np.where(known, kpageflags[np.where(known, pfn, 0)], np.uint64(0))
    special = present & (level == 1) & (entry & np.uint64(layout.special) != 0)
    pte = present & (level == 1) & ~special
    huge_zero = present & (level > 1) & _bit(flags, ZERO_PAGE)
    dirty = np.zeros(len(entry), bool)
    for mask, value in layout.dirty:
        dirty |= entry & np.uint64(mask) == value
    hugetlb = present & known & _bit(flags, HUGE)
    pte &= ~hugetlb
    pmd = present & (level > 1) & ~huge_zero & ~hugetlb
    return Leaves(
        pte_vpn=vpn[pte],
        pte_pfn=pfn[pte],
        pte_dirty_file=(dirty & ~_bit(flags, ANON))[pte],
        pte_contiguous=(entry & np.uint64(layout.contiguous) != 0)[pte] if layout.contiguous else None,
        pmd_vpn=vpn[pmd],
        pmd_pfn=pfn[pmd],
        special=int((special | huge_zero).sum()),
        # one that several entries map begins with the first
        hugetlb=int((hugetlb & _bit(flags, HEAD)).sum()),
    )


def runs(vpns: np.ndarray) -> list[list[int]]:
    """Sorted page numbers as [[first, pages], ...]."""
    if not len(vpns):
        return []
    breaks = np.flatnonzero(np.diff(vpns) != 1) + 1
    return [[int(part[0]), len(part)] for part in np.split(vpns, breaks)]
