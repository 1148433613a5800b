"""A trace -> a table of counters: one row for each address space and algorithm."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import polars as pl

from replay.teardown import machine, state
from replay.teardown.algorithms import (
    RELEASE_BATCH,
    Algorithm,
    Release,
    batch_slots,
    max_batches,
    select,
    table_batch,
    tables_in_gather,
)
from replay.teardown.counters import CHECKS, COUNTED, COUNTERS, complete
from replay.teardown.extents import I64, Bool, Extents, huge_zero
from replay.teardown.spaces import address_spaces, page_tables, rcu_tables
from replay.trace import totals
from replay.trace.frame import Trace
from replay.trace.schema import HUGETLB, MARKER, PMD, SPECIAL, SWAP, ptes_per_table


def run(
    trace: Trace,
    algorithms: Sequence[str] | str | None = None,
    *,
    page_tables_in_gather: bool | None = None,
    partial: bool = False,
) -> pl.DataFrame:
    """Replay a trace: columns `trace mm pid comm algorithm`, then the counters, as int64.

    algorithms: names, or one name; all if None. page_tables_in_gather: whether page-table pages go through
    the gather; if None, by the architecture of the trace. partial: count what is there of a trace of which
    rows are missing. An address space without rows that should have some is left out, with a `UserWarning`.

    Raises `UsageError` for an unknown algorithm, `TraceError` where rows are missing (`Trace.as_part` marks
    what is a part on purpose).
    """
    checked = run_checked(trace, algorithms, page_tables_in_gather=page_tables_in_gather, partial=partial)
    return checked.drop(list(CHECKS))


def run_checked(
    trace: Trace,
    algorithms: Sequence[str] | str | None = None,
    *,
    page_tables_in_gather: bool | None = None,
    contiguous: I64 | None = None,
    partial: bool = False,
) -> pl.DataFrame:
    """As `run`, with the columns of `CHECKS` behind the counters.

    contiguous: as of `address_spaces`.
    """
    if not isinstance(trace, Trace):
        raise TypeError(f"{trace!r} is no trace: replay.read_trace(path) makes one of a file")
    names = [algorithms] if isinstance(algorithms, str) else algorithms
    chosen = select(None if names is None else list(names))
    trace = whole(trace, partial=partial)
    if page_tables_in_gather is None:
        page_tables_in_gather = tables_in_gather(trace.meta.architecture)
    rows = []
    for mm, space, extents in address_spaces(trace, contiguous):
        tables = page_tables(extents, space, trace.meta) if page_tables_in_gather else 0
        by_rcu = rcu_tables(extents, space, trace.meta, page_tables_in_gather)
        table, folios = lay_out(extents, ptes_per_table(trace.meta.page_size))
        for algorithm in chosen:
            counts = replay_tables(table, folios, tables, rules(algorithm, trace.meta.page_size), by_rcu)
            rows.append((trace.name, mm, space.pid, space.comm, algorithm.name, *counts.values()))
    schema = {
        "trace": pl.String,
        "mm": pl.UInt32,
        "pid": pl.UInt32,
        "comm": pl.String,
        "algorithm": pl.String,
    }
    schema |= dict.fromkeys((*COUNTERS, *CHECKS), pl.Int64)
    return pl.DataFrame(rows, schema=schema, orient="row")


def whole(trace: Trace, *, partial: bool) -> Trace:
    """The trace with its rows held against its metadata, if that was not done when they were read."""
    if trace.checked is trace.frame:
        return trace
    held = totals.checked(trace, trace.name or "the trace", partial=partial)
    for note in held.notes:
        warnings.warn(f"{trace.name or 'the trace'}: {note}", stacklevel=4)
    return held


def replay(extents: Extents, tables: int, page_size: int, algorithm: Algorithm) -> dict[str, int]:
    """One address space through the machine: counters, then `CHECKS`.

    tables: page-table pages that go through the gather.
    """
    table, folios = lay_out(extents, ptes_per_table(page_size))
    return replay_tables(table, folios, tables, rules(algorithm, page_size))


def replay_tables(
    table: I64, folios: I64, tables: int, chosen: state.Rules, by_rcu: int | None = None
) -> dict[str, int]:
    """The tables of `lay_out` through the machine; folios is left as it was.

    by_rcu: page-table pages freed by RCU, where only they make TLB flushes: one for each full batch of them,
    one for the rest.
    """
    folios = folios.copy()
    queued = (folios[:, state.F_ORDER] == chosen.queued_order) & (folios[:, state.F_ANON] != 0)
    folios[queued & (folios[:, state.F_HUGETLB] == 0), state.F_QUEUED] = 1
    counts = machine.exit_mmap(table, folios, chosen, tables)
    found = dict(zip(state.COUNTS, counts.tolist(), strict=True))
    if by_rcu is not None:
        found["tlb_flushes"] = -(-by_rcu // chosen.table_batch)
    held = found["ptes"] + found["pmd_mappings"] + found["hugetlb_pages"] + tables
    found["references_left"] = held - found["references_dropped"]
    return complete({name: found[name] for name in COUNTED}) | {name: found[name] for name in CHECKS}


def rules(algorithm: Algorithm, page_size: int) -> state.Rules:
    """An algorithm as the machine's numbers."""
    return state.Rules(
        entry=int(algorithm.entry),
        rmap=int(algorithm.rmap),
        delayed_rmap=algorithm.delayed_rmap,
        relock=algorithm.release in (Release.RELEASE_PAGES, Release.FOLIOS_PUT_REFS),
        release_batch=RELEASE_BATCH.get(algorithm.release, 0),
        slots=batch_slots(algorithm.entry, page_size),
        batches=max_batches(algorithm.entry, page_size),
        table_batch=table_batch(page_size),
        queued_order=ptes_per_table(page_size).bit_length() - 1 if algorithm.thps_queued else -1,
    )


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
    small = mapped & (e.order == 0) & (e.own > 1)
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
    states[:, state.F_MARKED] = partial
    states[:, state.F_QUEUED] = partial
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
    )
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
    for column in (state.KIND, state.TABLE, state.FLAGS):
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
