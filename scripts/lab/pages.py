"""The page state of a dumped case: folio heads, leaf entries of the page tables, what they map."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

HEAD, TAIL, HUGE, ANON, SWAPCACHE, ZERO_PAGE = 15, 16, 17, 12, 13, 24  # kpageflags bits
LEVEL_SHIFT = np.uint64(60)
FRAME = np.uint64(0x000FFFFFFFFFF000)
PRESENT, PROT_NONE, SPECIAL = 1 << 0, 1 << 8, 1 << 9
DIRTY = 1 << 6
# Write-protected dirty entries keep the bit elsewhere, so that they are not taken for shadow stack entries:
# Linux kernel commit fca4d413c5f9 "x86/mm: Introduce _PAGE_SAVED_DIRTY" (in v6.6).
SAVED_DIRTY = 1 << 58
_AREA = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")
_LEAF = np.dtype([("where", "<u8"), ("entry", "<u8")])


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
    pmd_vpn: np.ndarray
    pmd_pfn: np.ndarray
    special: int
    hugetlb: int

    @property
    def mapped(self) -> np.ndarray:
        """The pfns that the entries name (of a PMD entry: its first page)."""
        return np.concatenate([self.pte_pfn, self.pmd_pfn])


def _raw_frames(smaps: str) -> Iterator[tuple[int, int]]:
    """(first page, end page) of VM_PFNMAP areas: the kernel's pagemap leaves their entries out."""
    start = end = 0
    for line in smaps.splitlines():
        if found := _AREA.match(line):
            start, end = (int(address, 16) // 4096 for address in found.groups())
        elif line.startswith("VmFlags:") and "pf" in line.split():
            yield start, end


def decode(raw: bytes, smaps: str, kpageflags: np.ndarray, saved_dirty: bool) -> Leaves:
    """Decode the collector's `leaves.bin`.

    :param saved_dirty: the kernel has the SAVED_DIRTY bit
    """
    leaves = np.frombuffer(raw, _LEAF)
    vpn = (leaves["where"] & np.uint64((1 << 60) - 1)).astype(np.int64)
    hidden = np.zeros(len(leaves), bool)
    for start, end in _raw_frames(smaps):
        hidden |= (vpn >= start) & (vpn < end)
    leaves, vpn = leaves[~hidden], vpn[~hidden]
    level = (leaves["where"] >> LEVEL_SHIFT).astype(np.int64)
    entry = leaves["entry"]
    present = entry & np.uint64(PRESENT | PROT_NONE) != 0
    # The kernel inverts the frame number of PROT_NONE entries (L1TF).
    frame = np.where(entry & np.uint64(PRESENT) != 0, entry, ~entry) & FRAME
    pfn = (frame >> np.uint64(12)).astype(np.int64)
    known = pfn < len(kpageflags)  # device memory has no struct page to show
    flags = np.where(known, kpageflags[np.where(known, pfn, 0)], np.uint64(0))
    special = present & (level == 1) & (entry & np.uint64(SPECIAL) != 0)
    pte = present & (level == 1) & ~special
    huge_zero = present & (level > 1) & _bit(flags, ZERO_PAGE)
    dirty = entry & np.uint64(DIRTY | (SAVED_DIRTY if saved_dirty else 0)) != 0
    huge = present & (level > 1) & ~huge_zero
    hugetlb = huge & _bit(flags, HUGE)
    pmd = huge & ~hugetlb
    return Leaves(
        pte_vpn=vpn[pte],
        pte_pfn=pfn[pte],
        pte_dirty_file=(dirty & ~_bit(flags, ANON))[pte],
        pmd_vpn=vpn[pmd],
        pmd_pfn=pfn[pmd],
        special=int((special | huge_zero).sum()),
        hugetlb=int(hugetlb.sum()),
    )


def runs(vpns: np.ndarray) -> list[list[int]]:
    """Sorted page numbers as [[first, pages], ...]."""
    if not len(vpns):
        return []
    breaks = np.flatnonzero(np.diff(vpns) != 1) + 1
    return [[int(part[0]), len(part)] for part in np.split(vpns, breaks)]
