# SPDX-License-Identifier: Apache-2.0
"""A trace -> a table of counters: one row for each address space and algorithm."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from replay.errors import ReplayError, TraceError, UsageError
from replay.teardown import layout, state, workspace
from replay.teardown.algorithms import Algorithm, flushes_for_tables, max_table_batch
from replay.teardown.counters import CHECKS, COUNTED, COUNTERS, complete
from replay.teardown.spaces import AddressSpaceInput, address_spaces, deposited, rows_of, streamed
from replay.teardown.together import exit_next
from replay.teardown.variants import chosen
from replay.teardown.workspace import I64, ImpossibleRowError, Workspace
from replay.trace import check, file, totals
from replay.trace.columns import BATCH_ROWS, Codes, Columns, batches, blank
from replay.trace.frame import Trace
from replay.trace.metadata import Metadata
from replay.trace.schema import COLUMNS, ptes_per_table

KEYS: Final = {
    "trace": pl.String,
    "mm": pl.UInt32,
    "pid": pl.UInt32,
    "comm": pl.String,
    "algorithm": pl.String,
}
"""What names a row of a result: column -> type."""

CONTPTE: Final = "aarch64"
"""The architecture whose extents are cut at contiguous entries, an address space at a time."""


LARGEST_FRAME: Final = 1 << 24
"""Rows that are read into one frame to say what is wrong with them: 8 GiB at most."""


class Replayed(NamedTuple):
    """A trace that was replayed.

    trace: its metadata, name and notes, without its rows. results: the frame of `run_checked`. figures:
    int64, shape (address spaces, `layout.FIGURE_COLUMNS`); None of those that were torn down together.
    """

    trace: Trace
    results: pl.DataFrame
    figures: I64 | None


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
    if together and trace.meta.mode == "live":
        check.check_frame(trace.frame, trace.meta, trace.name or "the trace")
        if trace.checked is not trace.frame:
            trace = _warned(totals.checked(trace, trace.name or "the trace", partial=partial))
        spaces = in_turn(list(address_spaces(trace)), order)
        counts = [[list(one.values()) for one in replay_together(spaces, each)] for each in wanted]
        counters = np.array(counts, np.int64).reshape(len(wanted), len(spaces), len(COUNTERS) + len(CHECKS))
        return _frame(trace, [space.mm for space in spaces], wanted, counters.swapaxes(0, 1))
    found = replayed(trace, wanted, contiguous=contiguous, partial=partial)
    if trace.checked is not trace.frame:
        _warned(found.trace)
    return found.results


def _warned(trace: Trace) -> Trace:
    """The trace, after a warning for each of its notes."""
    for note in trace.notes:
        warnings.warn(f"{trace.name or 'the trace'}: {note}", stacklevel=4)
    return trace


def replayed(
    trace: Trace,
    algorithms: Sequence[Algorithm],
    *,
    contiguous: I64 | None = None,
    partial: bool = False,
) -> Replayed:
    """Check and replay a trace in memory. Arguments and errors as of `run_checked`."""
    where = trace.name or "the trace"
    meta = trace.meta
    check.check_metadata(meta, where)

    def parts() -> Iterator[Columns]:
        table = trace.frame.select(name for name in COLUMNS if name in trace.frame.columns).to_arrow()
        return batches(table.to_batches(max_chunksize=BATCH_ROWS), codes, where)

    codes = Codes(meta.format_version)
    by_extents = meta.architecture == CONTPTE
    k = _pass(parts, meta, codes, [] if by_extents else algorithms, where, lambda: trace.frame)
    told = trace
    if trace.checked is not trace.frame:
        told = totals.held(k.figures[:, : layout.TYPES], trace, where, partial=partial)
    if by_extents:
        k = _replay_extents(lambda: address_spaces(told, contiguous), meta, algorithms, k)
    return _replayed(told, algorithms, k)


def replayed_file(
    path: Path, algorithms: Sequence[Algorithm], *, partial: bool = False, name: str | None = None
) -> Replayed:
    """Read, check and replay a trace in one pass; its rows are never in memory all at once.

    name: what it is called, if not as its file. partial: as of `file.read`, whose errors are raised.
    A trace of arm64 is read twice: once to check it, and once an address space at a time.
    """
    with file.opened(path) as stream:
        meta = stream.meta
        where = str(path)
        check.check_metadata(meta, where)
        codes = Codes(meta.format_version)
        by_extents = meta.architecture == CONTPTE

        def rows() -> Iterator[pa.RecordBatch]:
            return stream.batches(list(COLUMNS), BATCH_ROWS)

        k = _pass(
            lambda: batches(rows(), codes, where),
            meta,
            codes,
            [] if by_extents else algorithms,
            where,
            stream.frame if stream.parquet.metadata.num_rows <= LARGEST_FRAME else None,
        )
        trace = stream.without_rows()
        trace = dataclasses.replace(trace, name=name or trace.name)
        told = totals.held(k.figures[:, : layout.TYPES], trace, where, partial=partial)
        if by_extents:
            k = _replay_extents(lambda: streamed(rows(), told), meta, algorithms, k)
    return _replayed(told, algorithms, k)


def _pass(
    parts: Callable[[], Iterator[Columns]],
    meta: Metadata,
    codes: Codes,
    algorithms: Sequence[Algorithm],
    where: str,
    frame: Callable[[], pl.DataFrame] | None,
) -> Workspace:
    """The one pass over the rows of a trace. Raises `TraceError` where a row is impossible.

    frame: gives all rows, for the check that names what is wrong; None if they are too many for that.
    """
    owners = np.array(
        [(space.pid, codes.of("comm", space.comm), space.page_tables) for space in meta.address_spaces],
        np.int64,
    ).reshape(len(meta.address_spaces), layout.OWNER_COLUMNS)
    numbers = [rules(algorithm, meta.page_size, meta.architecture) for algorithm in algorithms]
    try:
        return workspace.replay_all(
            parts, owners, numbers, meta.page_size, checked=True, is_part=bool(meta.part)
        )
    except ImpossibleRowError as error:
        row = error.row
    if frame is not None:
        # it names what is wrong
        check.check_frame(frame(), meta, where)
    raise TraceError(
        f"{where}: row {row} is impossible, or does not fit the rows of its address space: the trace is "
        "damaged, capture it again"
    )


def _replayed(trace: Trace, algorithms: Sequence[Algorithm], k: Workspace) -> Replayed:
    """What a workspace found, as a result."""
    numbers = [mm for mm in range(len(trace.meta.address_spaces)) if mm not in trace.left_out]
    counters = _counters(k.states.results, algorithms, trace.meta.page_size, trace.meta.architecture)
    results = _frame(trace, numbers, algorithms, counters[numbers])
    return Replayed(trace, results, k.figures)


def _counters(counts: I64, algorithms: Sequence[Algorithm], page_size: int, architecture: str) -> I64:
    """Counts of the machine -> counters, then `CHECKS`: int64, shape (address spaces, algorithms, both).

    counts: shape (address spaces, algorithms, counts).
    """
    found = dict(zip(state.COUNTS, np.moveaxis(counts, 2, 0), strict=True))
    by_rcu = np.array([rules(one, page_size, architecture).tables_by_rcu for one in algorithms], np.bool_)
    held = found["ptes"] + found["pmd_mappings"] + found["hugetlb_pages"]
    held = held + np.where(by_rcu, 0, found["page_tables"])
    found["references_left"] = held - found["references_dropped"]
    full = complete({name: found[name] for name in COUNTED}) | {name: found[name] for name in CHECKS}
    return np.stack(list(full.values()), axis=2)


def _frame(
    trace: Trace, spaces: Sequence[int], algorithms: Sequence[Algorithm], numbers: I64
) -> pl.DataFrame:
    """The frame of a result. spaces: numbers of address spaces; numbers: of `_counters`, for these."""
    owners = [trace.meta.address_spaces[mm] for mm in spaces]
    each = len(algorithms)
    keys = {
        "trace": [trace.name] * (len(spaces) * each),
        "mm": [mm for mm in spaces for _ in range(each)],
        "pid": [owner.pid for owner in owners for _ in range(each)],
        "comm": [owner.comm for owner in owners for _ in range(each)],
        "algorithm": [algorithm.name for algorithm in algorithms] * len(spaces),
    }
    flat = numbers.reshape(len(spaces) * each, len(COUNTERS) + len(CHECKS))
    # as buffers of Arrow: polars and pyarrow would load numpy.ma for arrays, which takes 10 ms, and pandas
    counts = [
        pa.Array.from_buffers(pa.int64(), len(column), [None, pa.py_buffer(column)])
        for column in np.ascontiguousarray(flat.T)
    ]
    counters = pl.DataFrame(pl.from_arrow(pa.Table.from_arrays(counts, names=[*COUNTERS, *CHECKS])))
    return pl.DataFrame(keys, schema=KEYS).hstack(counters)


def _replay_extents(
    spaces: Callable[[], Iterator[AddressSpaceInput]],
    meta: Metadata,
    algorithms: Sequence[Algorithm],
    checked: Workspace,
) -> Workspace:
    """Replay the extents of a trace that was checked, cut where contiguous entries of arm64 end.

    spaces: gives the address spaces in order, each time anew.
    """
    k = workspace.replay_all(
        lambda: (rows_of(space, space.mm) for space in spaces() if len(space.extents.vpn)),
        checked.states.owners,
        [rules(one, meta.page_size, meta.architecture) for one in algorithms],
        meta.page_size,
        checked=False,
    )
    return k._replace(figures=checked.figures)


def replay(space: AddressSpaceInput, algorithm: Algorithm) -> dict[str, int]:
    """One address space through the machine: counters, then `CHECKS`."""
    # the pass takes the deposited tables off again
    tables = space.page_tables + deposited(space.extents, space.page_size)
    k = workspace.replay_all(
        lambda: iter([rows_of(space, 0)]),
        np.array([[0, 0, tables]], np.int64),
        [rules(algorithm, space.page_size, space.architecture)],
        space.page_size,
        checked=False,
    )
    return _named(k.states.results[0, 0], space, algorithm)


def _named(counts: I64, space: AddressSpaceInput, algorithm: Algorithm) -> dict[str, int]:
    """Counts of one replay -> counters, then `CHECKS`, by name."""
    found = _counters(counts[None, None], [algorithm], space.page_size, space.architecture)
    return dict(zip((*COUNTERS, *CHECKS), found[0, 0].tolist(), strict=True))


def in_turn(spaces: Sequence[AddressSpaceInput], order: Sequence[int] | None) -> list[AddressSpaceInput]:
    """Address spaces in the order in which they exit: by PID, those of `order` before the others.

    Raises `ReplayError` if `order` names a process that is not there, `UsageError` if it names one twice.
    """
    by_pid = sorted(spaces, key=lambda space: space.pid)
    first = list(order or [])
    unknown = set(first) - {space.pid for space in by_pid}
    if unknown:
        raise ReplayError(
            f"--order names process {min(unknown)}, which the trace does not have: 'replay inspect --json' "
            "lists all"
        )
    if len(set(first)) < len(first):
        raise UsageError("--order names a process twice: name it once")
    place = {pid: number for number, pid in enumerate(first)}
    return sorted(by_pid, key=lambda space: place.get(space.pid, len(place)))


def replay_together(spaces: Sequence[AddressSpaceInput], algorithm: Algorithm) -> list[dict[str, int]]:
    """Address spaces through the machine one after the other, each from the state that the last one left.

    Folios and the mlock batch go from exit to exit, as if one CPU made them all: counters, then `CHECKS`.
    """
    if not spaces:
        return []
    page_size, architecture = spaces[0].page_size, spaces[0].architecture
    sizes = [len(space.extents.vpn) for space in spaces]
    # each page may be an extent
    room = sum(sizes) + sum(int(space.extents.pages[space.extents.mapcount > 1].sum()) for space in spaces)
    k = workspace.make(
        np.zeros((len(spaces), layout.OWNER_COLUMNS), np.int64),
        [rules(algorithm, page_size, architecture)],
        page_size,
        room + 1,
        together=True,
    )
    ends = []
    for number, space in enumerate(spaces):
        k = workspace.take_rows(rows_of(space, number), blank(1), k)
        ends.append(int(k.tables.registers[layout.EXTENTS]))
    found: list[dict[str, int]] = []
    for first, last, space in zip([0, *ends], ends, spaces, strict=False):
        exit_next(k.tables, k.states, first, last, space.page_tables, int(not found))
        found.append(_named(k.states.counts[0, : state.SEGMENTS], space, algorithm))
    return found


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
