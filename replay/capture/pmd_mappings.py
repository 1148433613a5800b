# SPDX-License-Identifier: Apache-2.0
"""Which pages a PMD maps, where PAGEMAP_SCAN does not tell: by a saved scan, or by the sums of smaps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from replay.capture import extents as ex
from replay.capture import folios, runs
from replay.capture.extents import Ranges
from replay.capture.run_store import Kept
from replay.capture.runs import Runs
from replay.procfs import files, pagemap_scan
from replay.procfs.files import Vma
from replay.procfs.pagemap_words import read_pieces
from replay.procfs.source import Tree
from replay.trace.kpageflags import bit
from replay.trace.schema import ptes_per_table

I64 = npt.NDArray[np.int64]

UPTODATE: Final = bit(3)
"""KPF_UPTODATE."""


def saved_huge(tree: Tree, pid: int) -> tuple[tuple[int, int], ...] | None:
    """PMD mappings by a `pagemap_scan` file of a saved tree, if it has one."""
    if tree.live or not (tree.root / str(pid) / "pagemap_scan").exists():
        return None
    start, end = pagemap_scan.saved_huge(files.read_text(tree.root, pid, "pagemap_scan"), tree.page_size)
    return tuple(zip(start.tolist(), end.tolist(), strict=True))


def still_whole(huge: Ranges, blocks: Iterable[Runs], size: int) -> Ranges:
    """What of PMD mappings seen by a scan the words of pagemap, read later, show to be mapped as a whole.

    A mapping may be split in between, even in a process that stands still, when its pages are to be swapped
    out or moved. size: PTEs of a page-table page.
    """
    if not len(huge.start):
        return huge
    parts = [_aligned_parts(runs.contiguous(block), size)[0] for block in blocks]
    vpn = np.concatenate([np.zeros(0, np.int64), *parts])
    vpn = np.sort(vpn[huge.at(vpn, 0) != 0])
    start, end = folios.pieces_of(vpn, np.full(len(vpn), size, np.int32), 0)
    return Ranges(start, end, np.ones_like(start))


def huge_by_smaps(tree: Tree, blocks: Kept, vmas: list[Vma]) -> tuple[Ranges, bool]:
    """PMD mappings by the totals of smaps, and whether these leave only one reading.

    A candidate is an aligned, whole PMD-sized folio mapped as a whole. v6.1 leaves PMD mappings of a
    PROT_NONE VMA out of Rss and of AnonHugePages alike (follow_trans_huge_pmd() refuses them).
    """
    size = ptes_per_table(tree.page_size)
    huge: list[I64] = []
    known = True
    parts = [_pmd_candidates(tree, block, size) for block in blocks.blocks()]
    none = np.zeros(0, np.int64), np.zeros(0, np.bool_)
    candidates, is_dirty = (np.concatenate(column) for column in zip(none, *parts, strict=True))
    for number, vma in enumerate(vmas):
        if vma.has("ht"):
            continue
        place = slice(*np.searchsorted(candidates, (vma.start, vma.end)))
        # clean ones first: __split_huge_pmd_locked() hands the dirty bit of a PMD to the folio
        here = candidates[place][np.argsort(is_dirty[place], kind="stable")]
        total = vma.pmd_mapped
        if vma.perms.startswith("---") and len(here):
            total += _mapped_pages(tree, blocks, number) - vma.rss
        count = min(max(total // size, 0), len(here))
        known &= total == count * size and count in (0, len(here))
        huge.append(np.sort(here[:count]))
    start = np.concatenate(huge) if huge else np.zeros(0, np.int64)
    return Ranges(start, start + size, np.ones_like(start)), known


def _pmd_candidates(tree: Tree, block: Runs, size: int) -> tuple[I64, folios.Bools]:
    """Aligned, whole folios of `size` pages or more, mapped in order at an aligned address.

    Returns the first page of each and whether the folio is dirty.
    """
    vpn, frame = _aligned_parts(runs.contiguous(block), size)
    # an aligned power of two: head first and a tail in the middle means that no folio begins between
    head = _flags(tree, frame)
    middle = _flags(tree, frame + size // 2)
    whole = (head & folios.HEAD != 0) & (middle & folios.TAIL != 0) & (head & ex.ZERO_PAGE == 0)
    # PM_EXCLUSIVE is that of the head for all pages of a PMD mapping up to Linux kernel commit 2c1f057e5be6
    # "fs/proc/task_mmu: properly detect PM_MMAP_EXCLUSIVE per page of PMD-mapped THPs" (in v6.11); kernels
    # that show UPTODATE on heads only are older still (v6.10)
    per_page = (head ^ middle) & UPTODATE == 0
    alike = np.isin(vpn, _aligned_parts(block.select(block.present), size)[0])
    taken = whole & (per_page | alike)
    return vpn[taken], (head & ex.DIRTY != 0)[taken]


def _mapped_pages(tree: Tree, blocks: Kept, vma: int) -> int:
    """Present pages of a VMA that are not zero pages."""
    count = 0
    for block in blocks.blocks():
        present = block.select(block.present & (block.vma == vma))
        frames, inverse = np.unique(present.frame, return_inverse=True)
        zero = _flags(tree, frames) & ex.ZERO_PAGE != 0
        count += int(present.pages[~zero[inverse]].sum())
    return count


def _flags(tree: Tree, frames: I64) -> I64:
    """kpageflags of single frames."""
    flags = np.zeros(len(frames), np.int64)
    files.check_read(read_pieces(tree.flags_fd, frames, np.ones_like(frames), flags) >= 0, tree.flags_fd)
    return flags


def _aligned_parts(mapped: Runs, size: int) -> tuple[I64, I64]:
    """(first page, first frame) of all aligned parts of `size` pages whose frames are aligned too."""
    first = -(-mapped.vpn // size) * size
    counts = np.maximum((mapped.vpn + mapped.pages - first) // size, 0)
    index = np.repeat(np.arange(len(first)), counts)
    vpn = first[index] + (np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)) * size
    frame = mapped.frame[index] + vpn - mapped.vpn[index]
    aligned = frame % size == 0
    return vpn[aligned], frame[aligned]
