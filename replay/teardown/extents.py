# SPDX-License-Identifier: Apache-2.0
"""Extents as plain arrays: the kernel's words decoded, once, at the edge of the teardown."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from replay.trace.kpageflags import (
    KPF_ANON,
    KPF_HUGE,
    KPF_LRU,
    KPF_MLOCKED,
    KPF_SWAPCACHE,
    KPF_ZERO_PAGE,
    bit,
)
from replay.trace.schema import KINDS, PAGE, PMD, SPECIAL, ptes_per_table

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


class Extents(NamedTuple):
    """Extents of one address space in address order; all arrays of shape (n,), int64 or bool.

    `table_end` is the page number behind the part of the VMA under the extent's PMD entry: with
    `vma`, it tells the page-table pages apart. `contiguous`: its entries have the contiguous bit, on arm64.
    `off_lru`: its folios are on no LRU list, so some CPU's LRU-add or mlock batch holds a reference to them;
    never of hugetlb. `mlocked`: its folios are mlocked. `locked`: its VMA is VM_LOCKED. `memcg`: the
    memory cgroup of its folios, 0 where the trace does not say. The other names are those of the trace.
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
    off_lru: Bool
    mlocked: Bool
    locked: Bool
    memcg: I64


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
    kind = np.array(kinds.replace_strict(list(KINDS), range(len(KINDS)), return_dtype=pl.Int64).to_numpy())
    hugetlb = flag(KPF_HUGE) | np.array((kinds == "hugetlb").to_numpy())
    return Extents(
        vma=integers("vma"),
        table_end=np.minimum((vpn // entries + 1) * entries, vma_end),
        vpn=vpn,
        pages=integers("pages"),
        kind=kind,
        pfn=integers("pfn"),
        mapcount=integers("mapcount"),
        own=integers("own"),
        folio=integers("folio"),
        order=integers("order"),
        folio_mapped=integers("folio_mapped"),
        folio_mapcount=integers("folio_mapcount"),
        anon=flag(KPF_ANON),
        swapcache=flag(KPF_SWAPCACHE) & flag(KPF_ANON),
        hugetlb=hugetlb,
        zero_page=flag(KPF_ZERO_PAGE),
        uffd_wp=bools("uffd_wp"),
        dirty=bools("dirty") & ~flag(KPF_ANON),
        contiguous=np.zeros(len(vpn), np.bool_),
        off_lru=~flag(KPF_LRU) & ~hugetlb & np.isin(kind, (PAGE, PMD)),
        mlocked=flag(KPF_MLOCKED),
        locked=_locked(frame["vma_flags"]),
        memcg=integers("memcg") if "memcg" in frame.columns else np.zeros(len(vpn), np.int64),
    )


def _locked(flags: pl.Series) -> Bool:
    """Whether VmFlags of smaps, two letters each, name `lo`: VM_LOCKED."""
    found = [text for text in flags.unique().cast(pl.String).to_list() if text and "lo" in text.split()]
    if not found:
        return np.zeros(len(flags), np.bool_)
    return np.array(flags.cast(pl.String).is_in(found).to_numpy())


def huge_zero(extents: Extents, entries: int) -> Bool:
    """Extents that map the huge zero page: one PMD entry each."""
    whole = (extents.kind == SPECIAL) & (extents.order > 0) & (extents.pages == entries)
    return whole & extents.zero_page
