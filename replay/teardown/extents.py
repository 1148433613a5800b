"""Extents as plain arrays: the kernel's words decoded, once, at the edge of the teardown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from replay.teardown import contiguous as contpte
from replay.teardown.algorithms import flushes_for_tables
from replay.trace.frame import Trace
from replay.trace.kpageflags import KPF_ANON, KPF_HUGE, KPF_SWAPBACKED, KPF_SWAPCACHE, KPF_ZERO_PAGE, bit
from replay.trace.metadata import AddressSpace, Metadata
from replay.trace.schema import KINDS, PMD, SPECIAL, ptes_per_table

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


class Extents(NamedTuple):
    """Extents of one address space in address order; all arrays of shape (n,), int64 or bool.

    `table_end` is the page number behind the part of the VMA under the extent's PMD entry: with
    `vma`, it tells the page-table pages apart. `contiguous`: its entries have the contiguous bit, on arm64.
    The other names are those of the trace.
    """

    vma: I64
    table_end: I64
    vpn: I64
    pages: I64
    kind: I64
    pfn: I64
    mapcount: I64
    own: I64
    folio: I64
    order: I64
    folio_mapped: I64
    folio_mapcount: I64
    anon: Bool
    swapcache: Bool
    hugetlb: Bool
    zero_page: Bool
    uffd_wp: Bool
    dirty: Bool
    contiguous: Bool


def decode(frame: pl.DataFrame, page_size: int) -> Extents:
    """Rows of a trace that belong to one address space -> `Extents`."""

    def integers(expression: pl.Expr | str) -> I64:
        return np.array(
            frame.select(pl.col(expression) if isinstance(expression, str) else expression), np.int64
        )[:, 0].copy()

    def flag(number: int) -> Bool:
        return np.array((frame["kpageflags"].to_numpy() & np.uint64(bit(number))) != 0)

    def bools(name: str) -> Bool:
        return np.array(frame[name].to_numpy(), np.bool_)

    entries = ptes_per_table(page_size)
    vpn = integers("vpn")
    vma_end = integers(pl.col("vma_start") + pl.col("vma_pages"))
    kinds = frame["kind"].cast(pl.String)
    return Extents(
        vma=integers("vma"),
        table_end=np.minimum((vpn // entries + 1) * entries, vma_end),
        vpn=vpn,
        pages=integers("pages"),
        kind=np.array(kinds.replace_strict(list(KINDS), range(len(KINDS)), return_dtype=pl.Int64).to_numpy()),
        pfn=integers("pfn"),
        mapcount=integers("mapcount"),
        own=integers("own"),
        folio=integers("folio"),
        order=integers("order"),
        folio_mapped=integers("folio_mapped"),
        folio_mapcount=integers("folio_mapcount"),
        anon=flag(KPF_ANON),
        swapcache=flag(KPF_SWAPCACHE) & flag(KPF_ANON),
        hugetlb=flag(KPF_HUGE) | np.array((kinds == "hugetlb").to_numpy()),
        zero_page=flag(KPF_ZERO_PAGE),
        uffd_wp=bools("uffd_wp"),
        dirty=bools("dirty") & ~flag(KPF_ANON),
        contiguous=np.zeros(len(vpn), np.bool_),
    )


def _alike(frame: pl.DataFrame) -> I64:
    """A number for each row, equal where entries have equal permissions, as far as a trace shows; -1: none.

    Where writes to a file are noticed, clean entries are write-protected: those of page cache, not of shmem.
    """
    perms = frame["vma_perms"].cast(pl.String)
    shmem = (frame["kpageflags"].to_numpy() & np.uint64(bit(KPF_SWAPBACKED))) != 0
    noticed = frame["dirty"].to_numpy() & ~shmem
    number = np.nan_to_num(perms.rank("dense").to_numpy()).astype(np.int64)
    alike = 4 * number + 2 * noticed + frame["uffd_wp"].to_numpy()
    return np.array(np.where(perms.str.starts_with("---").to_numpy(), -1, alike), np.int64)


def address_spaces(
    trace: Trace, contiguous: I64 | None = None
) -> Iterator[tuple[int, AddressSpace, Extents]]:
    """Each address space of a trace: its number, what is known of it, its extents (none for an empty one).

    contiguous: of an arm64 trace of one address space, the first page numbers of the blocks of contiguous
    entries; inferred if None.
    """
    everything = decode(trace.frame, trace.meta.page_size)
    alike = _alike(trace.frame) if trace.meta.architecture == "aarch64" else None
    mm = trace.frame["mm"].to_numpy()
    numbers = np.arange(len(trace.meta.address_spaces))
    begins = np.searchsorted(mm, numbers, side="left")
    ends = np.searchsorted(mm, numbers, side="right")
    for number, space in enumerate(trace.meta.address_spaces):
        rows = slice(int(begins[number]), int(ends[number]))
        extents = Extents._make(column[rows] for column in everything)
        if alike is not None:
            extents = contpte.cut(extents, alike[rows], trace.meta.page_size, contiguous)
        yield number, space, extents


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


def huge_zero(extents: Extents, entries: int) -> Bool:
    """Extents that map the huge zero page: one PMD entry each."""
    whole = (extents.kind == SPECIAL) & (extents.order > 0) & (extents.pages == entries)
    return whole & extents.zero_page
