"""The address spaces of a trace: their extents, and what their page tables add to a teardown."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from replay.teardown import contiguous as contpte
from replay.teardown.algorithms import flushes_for_tables
from replay.teardown.extents import I64, Extents, decode, huge_zero
from replay.trace.frame import Trace
from replay.trace.kpageflags import KPF_ANON, KPF_SWAPBACKED, bit
from replay.trace.metadata import AddressSpace, Metadata
from replay.trace.schema import PMD, ptes_per_table


def address_spaces(
    trace: Trace, contiguous: I64 | None = None
) -> Iterator[tuple[int, AddressSpace, Extents]]:
    """Each address space of a trace: its number, what is known of it, its extents (none for an empty one).

    contiguous: of an arm64 trace of one address space, the first page numbers of the blocks of contiguous
    entries; inferred if None.
    """
    everything = decode(trace.frame, trace.meta.page_size)
    alike = _alike(trace.frame, trace.meta.page_size) if trace.meta.architecture == "aarch64" else None
    mm = trace.frame["mm"].to_numpy()
    numbers = np.arange(len(trace.meta.address_spaces))
    begins = np.searchsorted(mm, numbers, side="left")
    ends = np.searchsorted(mm, numbers, side="right")
    for number, space in enumerate(trace.meta.address_spaces):
        if number in trace.left_out:
            continue
        rows = slice(int(begins[number]), int(ends[number]))
        extents = Extents._make(column[rows] for column in everything)
        if alike is not None:
            extents = contpte.cut(extents, alike[rows], trace.meta.page_size, contiguous)
        yield number, space, extents


def _alike(frame: pl.DataFrame, page_size: int) -> I64:
    """A number for each row, equal where entries have equal permissions, as far as a trace shows.

    -1 where they cannot have the contiguous bit: entries of PROT_NONE are not valid; the page cache may be
    mapped in parts of blocks (but for shmem, whose folios are mapped whole, and what was written to, page by
    page). Where writes to a file are noticed, clean entries are write-protected: those of page cache, not of
    shmem.
    """
    perms = frame["vma_perms"].cast(pl.String)
    page_cache = (frame["kpageflags"].to_numpy() & np.uint64(bit(KPF_ANON) | bit(KPF_SWAPBACKED))) == 0
    dirty = frame["dirty"].to_numpy()
    noticed = dirty & page_cache
    number = np.nan_to_num(perms.rank("dense").to_numpy()).astype(np.int64)
    alike = 4 * number + 2 * noticed + frame["uffd_wp"].to_numpy()
    without = perms.str.starts_with("---").to_numpy()
    if not contpte.read_faults_make_blocks(page_size):
        without = without | (page_cache & ~dirty)
    return np.array(np.where(without, -1, alike), np.int64)


def page_tables(extents: Extents, space: AddressSpace, meta: Metadata) -> int:
    """Page-table pages that free_pgtables() finds: VmPTE less the tables deposited under anonymous PMDs.

    A deposited table is freed with its PMD entry (zap_deposited_table()); the huge zero page has one too.
    """
    entries = ptes_per_table(meta.page_size)
    deposited = huge_zero(extents, entries) | ((extents.kind == PMD) & extents.anon)
    return max(space.page_tables - int(np.count_nonzero(deposited & (extents.vpn % entries == 0))), 0)


def rcu_tables(extents: Extents, space: AddressSpace, meta: Metadata, in_gather: bool) -> int | None:
    """Page-table pages freed by RCU, where only they make TLB flushes; None elsewhere.

    in_gather: whether page-table pages go through the gather.
    """
    if in_gather or not flushes_for_tables(meta.architecture):
        return None
    return page_tables(extents, space, meta)
