# SPDX-License-Identifier: Apache-2.0
"""A trace -> a table of counters: one row for each address space and algorithm."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache

import numpy as np
import polars as pl

from replay.errors import UsageError
from replay.teardown import machine, state
from replay.teardown.algorithms import (
    PAGEVEC_SIZE,
    Algorithm,
    flushes_for_tables,
    max_table_batch,
)
from replay.teardown.counters import CHECKS, COUNTED, COUNTERS, complete
from replay.teardown.extents import I64, Bool, Extents, huge_zero
from replay.teardown.spaces import AddressSpaceInput, address_spaces
from replay.teardown.variants import chosen
from replay.trace import totals
from replay.trace.frame import Trace
from replay.trace.schema import HUGETLB, MARKER, PMD, SPECIAL, SWAP, ptes_per_table

KEYS = {
    "trace": pl.String,
    "mm": pl.UInt32,
    "pid": pl.UInt32,
    "comm": pl.String,
    "algorithm": pl.String,
}
"""What names a row of a result: column -> type."""


def run(
    trace: Trace,
    algorithms: Sequence[str | Algorithm] | str | Algorithm | None = None,
    *,
    page_tables: str | None = None,
    partial: bool = False,
) -> pl.DataFrame:
    """Replay a trace: columns `trace mm pid comm algorithm`, then the counters, as int64.

    algorithms: names, definitions as `replay run -a` takes them, or `Algorithm`s; all if None. page_tables:
    "gather" or "rcu", where page-table pages go under every algorithm; if None, where each has them go.
    partial: count what is there of a trace of which rows are missing. An address space without rows that
    should have some is left out, with a `UserWarning`.

    Raises `UsageError` for an unknown algorithm or parameter, `TraceError` where rows are missing
    (`Trace.as_part` marks what is a part on purpose).
    """
    return run_checked(trace, algorithms, page_tables=page_tables, partial=partial).drop(list(CHECKS))


def run_checked(
    trace: Trace,
    algorithms: Sequence[str | Algorithm] | str | Algorithm | None = None,
    *,
    page_tables: str | None = None,
    contiguous: I64 | None = None,
    together: bool = False,
    order: Sequence[int] | None = None,
    partial: bool = False,
) -> pl.DataFrame:
    """As `run`, with the columns of `CHECKS` behind the counters.

    contiguous: as of `address_spaces`. together, order: as of `in_turn`, for a live trace; readings at
    an exit are in turn already.
    """
    if not isinstance(trace, Trace):
        raise TypeError(f"{trace!r} is no trace: replay.read_trace(path) makes one of a file")
    wanted = chosen(algorithms, page_tables)
    trace = whole(trace, partial=partial)
    rows: list[tuple[object, ...]] = []
    if together and trace.meta.mode == "live":
        spaces = in_turn(list(address_spaces(trace)), order)
        for algorithm in wanted:
            for space, counts in zip(spaces, replay_together(spaces, algorithm), strict=True):
                rows.append((trace.name, space.mm, space.pid, space.comm, algorithm.name, *counts.values()))
        return result(rows)
    for space in address_spaces(trace, contiguous):
        table, folios = lay_out(space.extents, ptes_per_table(space.page_size))
        for algorithm in wanted:
            counts = _tear_down(space, table, folios.copy(), algorithm)
            rows.append((trace.name, space.mm, space.pid, space.comm, algorithm.name, *counts.values()))
    return result(rows)


def whole(trace: Trace, *, partial: bool) -> Trace:
    """The trace with its rows held against its metadata, if that was not done when they were read."""
    if trace.checked is trace.frame:
        return trace
    held = totals.checked(trace, trace.name or "the trace", partial=partial)
    for note in held.notes:
        warnings.warn(f"{trace.name or 'the trace'}: {note}", stacklevel=4)
    return held


def result(rows: Sequence[tuple[object, ...]]) -> pl.DataFrame:
    """Rows of `KEYS`, counters and checks -> the frame of a result."""
    schema = KEYS | dict.fromkeys((*COUNTERS, *CHECKS), pl.Int64)
    return pl.DataFrame(rows, schema=schema, orient="row")


def replay(space: AddressSpaceInput, algorithm: Algorithm) -> dict[str, int]:
    """One address space through the machine: counters, then `CHECKS`."""
    table, folios = lay_out(space.extents, ptes_per_table(space.page_size))
    return _tear_down(space, table, folios, algorithm)


def in_turn(spaces: Sequence[AddressSpaceInput], order: Sequence[int] | None) -> list[AddressSpaceInput]:
    """Address spaces in the order in which they exit: by PID, those of `order` before the others.

    Raises `UsageError` if `order` names a process that is not there, or one twice.
    """
    by_pid = sorted(spaces, key=lambda space: space.pid)
    first = list(order or [])
    unknown = set(first) - {space.pid for space in by_pid}
    if unknown:
        raise UsageError(f"the order names process {min(unknown)}, which the trace does not have")
    if len(set(first)) < len(first):
        raise UsageError("the order names a process twice")
    place = {pid: number for number, pid in enumerate(first)}
    return sorted(by_pid, key=lambda space: place.get(space.pid, len(place)))


def replay_together(spaces: Sequence[AddressSpaceInput], algorithm: Algorithm) -> list[dict[str, int]]:
    """Address spaces through the machine one after the other, each from the state that the last one left.

    Folios and the mlock batch go from exit to exit, as if one CPU made them all: counters, then `CHECKS`.
    """
    if not spaces:
        return []
    tables, folios = _lay_out_together(spaces)
    chosen = rules(algorithm, spaces[0].page_size, spaces[0].architecture)
    mlocked = prepare(folios, chosen)
    return [count(space, table, folios, chosen, mlocked) for space, table in zip(spaces, tables, strict=True)]


def _tear_down(space: AddressSpaceInput, table: I64, folios: I64, algorithm: Algorithm) -> dict[str, int]:
    """The tables of `lay_out` through the machine; folios is changed."""
    chosen = rules(algorithm, space.page_size, space.architecture)
    mlocked = prepare(folios, chosen)
    return count(space, table, folios, chosen, mlocked)


def prepare(folios: I64, chosen: state.Rules) -> I64:
    """Put into the folios table what depends on the algorithm -> the mlock batch of `machine.exit_mmap`."""
    if chosen.counts_pages and chosen.queued_order < 0 and chosen.drains_lru:
        return np.zeros(1, np.int64)
    anon = (folios[:, state.F_ANON] != 0) & (folios[:, state.F_HUGETLB] == 0)
    if not chosen.counts_pages:
        # the kernel has no other count than the sum of the mapcounts
        partial = anon & (folios[:, state.F_ORDER] >= 2) & (folios[:, state.F_SWAPCACHE] == 0)
        partial &= folios[:, state.F_MAPCOUNT] < np.int64(1) << folios[:, state.F_ORDER]
        folios[:, state.F_PARTIALLY_MAPPED] = partial
        folios[:, state.F_QUEUED] = partial
    if chosen.queued_order >= 0:
        folios[anon & (folios[:, state.F_ORDER] == chosen.queued_order), state.F_QUEUED] = 1
    if chosen.drains_lru:
        return np.zeros(1, np.int64)
    folios[:, state.F_REFS] += folios[:, state.F_WAITS] != 0
    waiting = np.flatnonzero(folios[:, state.F_WAITS] == state.MLOCK_BATCH)
    mlocked = np.zeros(1 + len(waiting) + PAGEVEC_SIZE, np.int64)
    mlocked[0] = len(waiting)
    mlocked[1 : 1 + len(waiting)] = waiting
    return mlocked


def count(
    space: AddressSpaceInput, table: I64, folios: I64, chosen: state.Rules, mlocked: I64
) -> dict[str, int]:
    """One teardown by the machine, from this state: counters, then `CHECKS`. Changes folios and mlocked."""
    counts = machine.exit_mmap(table, folios, chosen, space.page_tables, mlocked)
    found = dict(zip(state.COUNTS, counts.tolist(), strict=True))
    held = found["ptes"] + found["pmd_mappings"] + found["hugetlb_pages"]
    held += 0 if chosen.tables_by_rcu else found["page_tables"]
    found["references_left"] = held - found["references_dropped"]
    return complete({name: found[name] for name in COUNTED}) | {name: found[name] for name in CHECKS}


@cache
def rules(algorithm: Algorithm, page_size: int, architecture: str) -> state.Rules:
    """An algorithm as the machine's numbers, for address spaces of this architecture."""
    by_rcu = not algorithm.gathers_tables(architecture)
    return state.Rules(
        entry=int(algorithm.entry),
        runs=state.ANON_RUNS * algorithm.anon_runs + state.FILE_RUNS * algorithm.file_runs,
        delayed_rmap=algorithm.delayed_rmap,
        relocks=algorithm.relocks,
        release_batch=algorithm.release_batch or state.WHOLE_CHUNK,
        slots=algorithm.slots_of_batch(page_size),
        batches=algorithm.max_gather_batch_count(page_size),
        table_batch=max_table_batch(page_size),
        queued_order=ptes_per_table(page_size).bit_length() - 1 if algorithm.thps_queued else -1,
        mapcounts=int(algorithm.mapcounts),
        alike=(state.UFFD_WP | state.CONTIGUOUS) if algorithm.alike_runs else 0,
        run_references=algorithm.run_references,
        bundle=algorithm.bundle,
        batch_pages=algorithm.pages_of_batch(page_size),
        max_folios_per_free=algorithm.max_folios_per_free,
        lock_batch=algorithm.lock_batch,
        defers_rmap=algorithm.defers_rmap,
        counts_pages=algorithm.counts_pages,
        splits_once=algorithm.splits_once,
        drains_lru=algorithm.drains_lru,
        tables_by_rcu=by_rcu,
        tlb_by_tables=by_rcu and flushes_for_tables(architecture),
    )


def _lay_out_together(spaces: Sequence[AddressSpaceInput]) -> tuple[list[I64], I64]:
    """As `lay_out`, for several address spaces: the extents table of each, and one folios table for all.

    Pages that several of them map, or one of them several times, have one state.
    """
    e = Extents._make(np.concatenate(columns) for columns in zip(*(s.extents for s in spaces), strict=True))
    sizes = [len(space.extents.vpn) for space in spaces]
    # VMAs of different address spaces are different ones
    vma = e.vma + np.repeat(np.arange(len(spaces)), sizes) * (e.vma.max(initial=0) + 1)
    own = np.maximum(e.own, np.minimum(e.mapcount, 2))
    table, folios = lay_out(e._replace(vma=vma, own=own), ptes_per_table(spaces[0].page_size))
    # rows are joined inside an address space only, so its first page begins a row
    begins = np.cumsum(table[:, state.PAGES]) - table[:, state.PAGES]
    pages = [int(space.extents.pages.sum()) for space in spaces]
    cuts = np.searchsorted(begins, np.cumsum(pages)[:-1])
    return [np.ascontiguousarray(part) for part in np.split(table, cuts)], folios


def lay_out(e: Extents, entries: int) -> tuple[I64, I64]:
    """Extents -> the machine's extents table and folios table (see `state.py`).

    entries: PTEs of a page-table page. References at capture: one per PTE mapping by anyone, one per PMD or
    huge page mapping, one per page in the page cache or swap cache. Partially mapped anonymous folios are on
    the deferred split queue already, but for those in the swap cache, which deferred_split_folio() refuses.
    """
    mapped = (e.kind != SPECIAL) & (e.kind != SWAP) & (e.kind != MARKER)
    large = mapped & (e.order > 0)
    begins = ((e.kind == PMD) & (e.vpn % entries == 0)) | ((e.kind == HUGETLB) & (e.pfn == e.folio))
    zero = huge_zero(e, entries)

    _, first_large, folio_of_large = np.unique(e.folio[large], return_index=True, return_inverse=True)
    first_large = np.flatnonzero(large)[first_large]
    # pages that an mlock batch may get, and free later, need a state of their own
    locked = e.locked | (e.off_lru & e.mlocked)
    small = mapped & (e.order == 0) & ((e.own > 1) | locked)
    small_pfns, first_small = _pages(e, small)
    repeated = large & (e.own > 1)
    repeated_pfns, first_repeated = _pages(e, repeated)

    folio = np.full(len(e.vpn), state.NO_FOLIO, np.int64)
    folio[large] = folio_of_large
    folio[small] = len(first_large) + np.searchsorted(small_pfns, e.pfn[small])
    page_row = np.full(len(e.vpn), state.NO_FOLIO, np.int64)
    page_row[repeated] = len(first_large) + len(first_small) + np.searchsorted(repeated_pfns, e.pfn[repeated])

    first = np.concatenate([first_large, first_small])
    size = np.int64(1) << e.order[first]
    folios = np.zeros((len(first) + len(first_repeated), state.FOLIO_COLUMNS), np.int64)
    states = folios[: len(first)]
    states[:, state.F_ORDER] = e.order[first]
    states[:, state.F_ANON] = e.anon[first]
    states[:, state.F_HUGETLB] = e.hugetlb[first]
    states[:, state.F_MAPPED] = e.folio_mapped[first]
    states[:, state.F_MAPCOUNT] = e.folio_mapcount[first]
    states[:, state.F_SWAPCACHE] = e.swapcache[first]
    states[:, state.F_REFS] = e.folio_mapcount[first] + np.where(e.swapcache[first] | ~e.anon[first], size, 0)
    np.subtract.at(states[:, state.F_REFS], folio[begins], size[folio[begins]] - 1)
    partial = e.anon[first] & ~e.hugetlb[first] & (e.order[first] >= 2) & (e.folio_mapped[first] < size)
    partial &= ~e.swapcache[first]
    states[:, state.F_PARTIALLY_MAPPED] = partial
    states[:, state.F_QUEUED] = partial
    states[:, state.F_MEMCG] = e.memcg[first]
    states[:, state.F_WAITS] = e.off_lru[first] * np.where(
        e.mlocked[first], state.MLOCK_BATCH, state.LRU_ADD_BATCH
    )
    folios[len(first) :, state.F_MAPCOUNT] = e.mapcount[first_repeated]
    by_pmd = np.flatnonzero(repeated & (e.kind == PMD))
    np.add.at(folios[:, state.F_PMDS], _spread(page_row[by_pmd], e.pages[by_pmd]), 1)

    table = np.empty((len(e.vpn), state.EXTENT_COLUMNS), np.int64)
    table[:, state.KIND] = np.where(zero, state.HUGE_ZERO, e.kind)
    table[:, state.TABLE] = _numbered_tables(e, begins | zero)
    table[:, state.TABLE_END] = e.table_end
    table[:, state.VPN] = e.vpn
    table[:, state.PAGES] = e.pages
    table[:, state.PFN] = e.pfn
    table[:, state.FOLIO_END] = e.folio + (np.int64(1) << e.order)
    table[:, state.ORDER] = e.order
    table[:, state.MAPCOUNT] = e.mapcount
    table[:, state.FLAGS] = (
        state.ANON * e.anon
        + state.SWAPCACHE * e.swapcache
        + state.UFFD_WP * e.uffd_wp
        + state.CONTIGUOUS * e.contiguous
        + state.DIRTY * e.dirty
        + state.BEGINS * begins
        + state.OFF_LRU * e.off_lru
        + state.LOCKED * e.locked
    )
    table[:, state.MEMCG] = e.memcg
    table[:, state.FOLIO] = folio
    table[:, state.PAGE_ROW] = page_row
    return _joined(table), folios


def _joined(table: I64) -> I64:
    """Join neighbours that no algorithm tells apart: order-0 pages without a state, swap and special entries.

    An order-0 page is an entry of its own wherever its frame lies: what counts is that the next page is its
    neighbour in the address space, is dirty or clean like it, and is freed like it or not. This makes
    scattered pages as quick as contiguous ones.
    """
    plain = (table[:, state.FOLIO] == state.NO_FOLIO) & (table[:, state.KIND] != state.HUGE_ZERO)
    freed = table[:, state.MAPCOUNT] == 1
    joins = np.zeros(len(table), np.bool_)
    joins[1:] = plain[1:] & plain[:-1] & (freed[1:] == freed[:-1])
    joins[1:] &= table[1:, state.VPN] == table[:-1, state.VPN] + table[:-1, state.PAGES]
    for column in (state.KIND, state.TABLE, state.FLAGS, state.MEMCG):
        joins[1:] &= table[1:, column] == table[:-1, column]
    starts = np.flatnonzero(~joins)
    if len(starts) == len(table):
        return table
    pages = np.add.reduceat(table[:, state.PAGES], starts)
    table = table[starts]
    table[:, state.PAGES] = pages
    return table


def _numbered_tables(e: Extents, begins: Bool) -> I64:
    """For each extent the number of its page-table page, or of its huge mapping."""
    huge = (e.kind == PMD) | (e.kind == HUGETLB) | begins
    new = np.ones(len(e.vpn), np.bool_)
    new[1:] = (e.vma[1:] != e.vma[:-1]) | (e.table_end[1:] != e.table_end[:-1]) | (huge[1:] != huge[:-1])
    return np.cumsum(new | begins)


def _pages(e: Extents, chosen: Bool) -> tuple[I64, I64]:
    """The pages of some extents -> (their pfns in order, once each; the first extent that maps each)."""
    rows = np.flatnonzero(chosen)
    pages = e.pages[rows]
    pfns, first = np.unique(_spread(e.pfn[rows], pages), return_index=True)
    return pfns, np.repeat(rows, pages)[first]


def _spread(first: I64, sizes: I64) -> I64:
    """The numbers of ranges [first, first + size), one range after the other."""
    within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.repeat(first, sizes) + within
