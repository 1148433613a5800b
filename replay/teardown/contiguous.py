# SPDX-License-Identifier: Apache-2.0
"""Contiguous entries of arm64 (contpte, since v6.9): which there are, and extents cut where they end.

A block of PTEs (16 with 4 KiB pages, 128 with 16 KiB, 32 with 64 KiB) that map as many pages of one folio,
aligned alike and with equal permissions, has the contiguous bit in all of them. procfs does not show it.

Linux kernel commit 4602e5757bcc "arm64/mm: wire up PTE_CONT for user mappings" (in v6.9).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from replay.teardown.extents import I64, Bool, Extents
from replay.trace.schema import PAGE

BLOCK: Final = {4096: 16, 16384: 128, 65536: 32}
"""Page size -> entries of a block: CONT_PTES."""

FAULT_AROUND_BYTES: Final = 65536
"""What a read fault maps of the page cache at once: fault_around_bytes of mm/memory.c, by default."""


def read_faults_make_blocks(page_size: int) -> bool:
    """Whether read faults of the page cache leave blocks with the bit: not with 16 KiB pages.

    Entries set together get it if they are whole blocks, as those of 4 KiB pages are; single ones, as those
    of 64 KiB pages, when the last of a block is set. With 16 KiB pages four entries are set together.
    """
    return FAULT_AROUND_BYTES in (page_size, BLOCK[page_size] * page_size)


def cut(e: Extents, alike: I64, page_size: int, known: I64 | None) -> Extents:
    """Extents of one address space, cut so that each is contiguous as a whole or not at all.

    alike: equal numbers where entries have equal permissions, below 0 where they cannot have the bit. known:
    the first page numbers of the blocks that have it. If None it is inferred: all have it that can. It is set
    when a block is mapped at once, or its last entry is set, and taken away when an entry changes: blocks
    whose last entry was not the last one set go without.
    """
    block = BLOCK[page_size]
    rows = np.flatnonzero((e.kind == PAGE) & ((np.int64(1) << e.order) >= block))
    if not len(rows):
        return e
    first = e.vpn[rows] // block
    pieces = (e.vpn[rows] + e.pages[rows] - 1) // block - first + 1
    row = np.repeat(rows, pieces)
    number = np.repeat(first, pieces) + np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start = np.maximum(e.vpn[row], number * block)
    end = np.minimum(e.vpn[row] + e.pages[row], (number + 1) * block)
    begins = np.flatnonzero(np.diff(number, prepend=-1))
    if known is None:
        has = _foldable(e, alike, block, row, start, end, begins)
    else:
        has = np.isin(number[begins], known // block)
    pieces = np.diff(begins, append=len(row))
    # Tearing down the first VMA's part of a block takes the bit from the rest.
    contiguous = np.repeat(has, pieces) & (e.vma[row] == np.repeat(e.vma[row[begins]], pieces))
    joins = (np.diff(row, prepend=-1) == 0) & (np.diff(contiguous, prepend=~contiguous[:1]) == 0)
    starts = np.flatnonzero(~joins)
    others = np.setdiff1d(np.arange(len(e.vpn)), rows)
    source = np.concatenate([row[starts], others])
    vpn = np.concatenate([start[starts], e.vpn[others]])
    stop = np.concatenate([end[np.append(starts[1:], len(row)) - 1], e.vpn[others] + e.pages[others]])
    bit = np.concatenate([contiguous[starts], np.zeros(len(others), np.bool_)])
    order = np.lexsort((vpn, source))
    source, vpn, stop, bit = source[order], vpn[order], stop[order], bit[order]
    whole = type(e)._make(column[source] for column in e)
    return whole._replace(vpn=vpn, pages=stop - vpn, pfn=whole.pfn + vpn - whole.vpn, contiguous=bit)


def _foldable(e: Extents, alike: I64, block: int, row: I64, start: I64, end: I64, begins: I64) -> Bool:
    """For each block whether its entries can have the bit.

    Pieces of blocks, in order: row of the extent, first and end page; begins: the first piece of each block.
    """
    full = np.add.reduceat(end - start, begins) == block
    shift = (e.pfn - e.vpn)[row]
    likeness = alike[row]
    same = np.maximum.reduceat(shift, begins) == np.minimum.reduceat(shift, begins)
    same &= np.maximum.reduceat(likeness, begins) == np.minimum.reduceat(likeness, begins)
    return full & same & (shift[begins] % block == 0) & (likeness[begins] >= 0)
