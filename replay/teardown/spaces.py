# SPDX-License-Identifier: Apache-2.0
"""The address spaces of a trace: their extents, and what their page tables add to a teardown."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
import polars as pl
import pyarrow as pa

from replay.teardown import contiguous as contpte
from replay.teardown.extents import I64, Extents, decode, huge_zero
from replay.trace.columns import Columns, blank
from replay.trace.frame import Trace, frame_of
from replay.trace.kpageflags import (
    KPF_ANON,
    KPF_HUGE,
    KPF_LRU,
    KPF_MLOCKED,
    KPF_SWAPBACKED,
    KPF_SWAPCACHE,
    KPF_ZERO_PAGE,
    bit,
)
from replay.trace.metadata import AddressSpace
from replay.trace.schema import PMD, ptes_per_table


@dataclasses.dataclass(frozen=True)
class AddressSpaceInput:
    """What one address space brings to a teardown.

    mm: its number in the trace. page_tables: page-table pages that free_pgtables() finds.
    """

    mm: int
    pid: int
    comm: str
    extents: Extents
    page_tables: int
    page_size: int
    architecture: str


def address_spaces(trace: Trace, contiguous: I64 | None = None) -> Iterator[AddressSpaceInput]:
    """Each address space of a trace; one that maps nothing has no extents.

    contiguous: of an arm64 trace of one address space, the first page numbers of the blocks of contiguous
    entries; inferred if None.
    """
    yield from _some(trace, range(len(trace.meta.address_spaces)), contiguous)


def streamed(batches: Iterable[pa.RecordBatch], trace: Trace) -> Iterator[AddressSpaceInput]:
    """The address spaces that have rows. Those of a few batches are in memory at a time, at least one.

    batches: rows of a trace in order. trace: the same trace, without its rows.
    """
    for frame in _whole_spaces(batches):
        numbers = frame["mm"].unique(maintain_order=True).to_list()
        yield from _some(dataclasses.replace(trace, frame=frame), numbers, None)


def _whole_spaces(batches: Iterable[pa.RecordBatch]) -> Iterator[pl.DataFrame]:
    """Rows cut where address spaces begin."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        mm = batch.column("mm").to_numpy()
        first = int(np.searchsorted(mm, mm[-1])) if len(mm) else 0
        if first or (waiting and len(mm) and mm[0] != waiting[-1].column("mm")[-1].as_py()):
            # the last address space of the batch may go on in the next one
            yield frame_of(pa.Table.from_batches([*waiting, batch.slice(0, first)], batch.schema))
            waiting = []
        waiting.append(batch.slice(first))
    if waiting:
        yield frame_of(pa.Table.from_batches(waiting))


def _some(trace: Trace, numbers: Iterable[int], contiguous: I64 | None) -> Iterator[AddressSpaceInput]:
    """Some address spaces of a trace, by their numbers."""
    page_size, architecture = trace.meta.page_size, trace.meta.architecture
    everything = decode(trace.frame, page_size)
    alike = _alike(trace.frame, page_size) if architecture == "aarch64" else None
    mm = trace.frame["mm"].to_numpy()
    for number in numbers:
        if number in trace.left_out:
            continue
        space = trace.meta.address_spaces[number]
        rows = slice(*map(int, np.searchsorted(mm, [number, number + 1])))
        extents = Extents._make(column[rows] for column in everything)
        if alike is not None:
            extents = contpte.cut(extents, alike[rows], page_size, contiguous)
        tables = page_tables(extents, space, page_size)
        yield AddressSpaceInput(number, space.pid, space.comm, extents, tables, page_size, architecture)


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


def page_tables(extents: Extents, space: AddressSpace, page_size: int) -> int:
    """Page-table pages that free_pgtables() finds: VmPTE less the tables deposited under anonymous PMDs."""
    return max(space.page_tables - deposited(extents, page_size), 0)


def deposited(extents: Extents, page_size: int) -> int:
    """Tables under PMD entries, freed by zap_deposited_table(); the huge zero page has one too."""
    entries = ptes_per_table(page_size)
    deposits = huge_zero(extents, entries) | ((extents.kind == PMD) & extents.anon)
    return int(np.count_nonzero(deposits & (extents.vpn % entries == 0)))


def rows_of(space: AddressSpaceInput, mm: int) -> Columns:
    """Extents of an address space as rows of a trace, as far as a replay that checks nothing reads them."""
    e = space.extents
    flags = sum(
        column.astype(np.int64) << number
        for column, number in (
            (e.anon, KPF_ANON),
            (e.swapcache, KPF_SWAPCACHE),
            (e.hugetlb, KPF_HUGE),
            (e.zero_page, KPF_ZERO_PAGE),
            (~e.off_lru, KPF_LRU),
            (e.mlocked, KPF_MLOCKED),
        )
    )
    given = e._asdict() | {
        "mm": np.full(len(e.vpn), mm),
        "vma_start": np.zeros(len(e.vpn)),
        "vma_pages": e.table_end,
        "vma_flags": e.locked,
        "kpageflags": flags,
    }
    return blank(0)._replace(
        **{
            name: np.ascontiguousarray(given[name], dtype=column.dtype)
            if name in given
            else np.zeros(len(e.vpn), column.dtype)
            for name, column in blank(0)._asdict().items()
        }
    )
