"""The page state of a dumped case: folio heads, leaf entries of the page tables, what they map."""

from dataclasses import dataclass

import numpy as np

HEAD, TAIL, HUGE, ANON, SWAPCACHE, ZERO_PAGE = 15, 16, 17, 12, 13, 24  # kpageflags bits
LEVEL_SHIFT = np.uint64(60)
FRAME = np.uint64(0x000FFFFFFFFFF000)
PRESENT, PROT_NONE, SPECIAL = 1 << 0, 1 << 8, 1 << 9
DIRTY = 1 << 6
# Linux 6.7 keeps the dirty bit of write-protected entries apart, for shadow stacks:
# commit fca4d413c5f9 ("x86/mm: Introduce _PAGE_SAVED_DIRTY").
SAVED_DIRTY = 1 << 57
_LEAF = np.dtype([("where", "<u8"), ("entry", "<u8")])


def _bit(flags: np.ndarray, number: int) -> np.ndarray:
    return (flags >> np.uint64(number)) & np.uint64(1) != 0


def heads(kpageflags: np.ndarray) -> np.ndarray:
    """For each pfn, the pfn of its folio's head page (itself for order-0 pages)."""
    pfns = np.arange(len(kpageflags), dtype=np.int64)
    return np.maximum.accumulate(np.where(_bit(kpageflags, TAIL), 0, pfns))


@dataclass(frozen=True)
class Leaves:
    """Present leaf entries of the page tables, zero pages and other entries without rmap left out.

    `pte_*`: entries of PTE tables; `pmd_*`: huge pages that are not hugetlb. vpn and pfn in pages.
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


def decode(raw: bytes, kpageflags: np.ndarray, saved_dirty: bool) -> Leaves:
    """Decode the collector's `leaves.bin`.

    :param saved_dirty: the kernel has the SAVED_DIRTY bit (6.7 or later)
    """
    leaves = np.frombuffer(raw, _LEAF)
    level = (leaves["where"] >> LEVEL_SHIFT).astype(np.int64)
    vpn = (leaves["where"] & np.uint64((1 << 60) - 1)).astype(np.int64)
    entry = leaves["entry"]
    present = entry & np.uint64(PRESENT | PROT_NONE) != 0
    # The kernel inverts the frame number of PROT_NONE entries (L1TF).
    frame = np.where(entry & np.uint64(PRESENT) != 0, entry, ~entry) & FRAME
    pfn = (frame >> np.uint64(12)).astype(np.int64)
    flags = np.where(pfn < len(kpageflags), kpageflags[np.minimum(pfn, len(kpageflags) - 1)], 0).astype(np.uint64)
    special = present & (level == 1) & (entry & np.uint64(SPECIAL) != 0)
    pte = present & (level == 1) & ~special
    dirty = entry & np.uint64(DIRTY | (SAVED_DIRTY if saved_dirty else 0)) != 0
    huge = present & (level > 1)
    hugetlb = huge & _bit(flags, HUGE)
    pmd = huge & ~hugetlb & ~_bit(flags, ZERO_PAGE)
    return Leaves(
        pte_vpn=vpn[pte],
        pte_pfn=pfn[pte],
        pte_dirty_file=(dirty & ~_bit(flags, ANON))[pte],
        pmd_vpn=vpn[pmd],
        pmd_pfn=pfn[pmd],
        special=int(special.sum()),
        hugetlb=int(hugetlb.sum()),
    )


def runs(vpns: np.ndarray) -> list[list[int]]:
    """Sorted page numbers as [[first, pages], ...]."""
    if not len(vpns):
        return []
    breaks = np.flatnonzero(np.diff(vpns) != 1) + 1
    return [[int(part[0]), len(part)] for part in np.split(vpns, breaks)]
