# SPDX-License-Identifier: Apache-2.0
"""In the encoder's process (see `handover`): snapshots become the rows of a trace."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from replay.capture import live
from replay.capture.address_space import Options, Space
from replay.capture.arrow import constant, table
from replay.capture.extents import Owner
from replay.errors import ProcessGoneError
from replay.procfs.files import U64
from replay.procfs.source import Tree
from replay.recording import snapshot
from replay.recording.handover import Batch, Captured, Done, Free, Large, Request
from replay.trace.metadata import AddressSpace, Metadata
from replay.trace.write import ARROW_SCHEMA, ROW_GROUP_ROWS, TraceWriter


@dataclass
class _Written:
    """What was read so far; tables wait until they fill a row group.

    on_trial: captures of processes inside execve, by PID, until it is known whether the exec has come about.
    """

    writer: TraceWriter
    spaces: list[AddressSpace] = field(default_factory=list)
    pmd_known: bool = True
    changed: int = 0
    extents: int = 0
    waiting: list[pa.Table] = field(default_factory=list)
    waiting_rows: int = 0
    on_trial: dict[int, _Captured] = field(default_factory=dict)


@dataclass(frozen=True)
class _Captured:
    """A large address space, with its rows; its number in them is `LATER` while it is on trial."""

    space: Space
    tables: list[pa.Table]
    ended_by: str


LATER: Final = 0


def write_trace(
    file: Any,
    tree: Tree,
    options: Options,
    requests: Iterator[Request],
    reply: Callable[[Free | Captured | Done], None],
    slabs: Sequence[U64],
) -> None:
    """Write what is requested to a binary file, as a trace."""
    written = _Written(TraceWriter(file))
    for request in requests:
        if isinstance(request, Batch):
            _add_batch(written, tree, request, slabs, reply)
        elif isinstance(request, Large):
            reply(Captured(_capture_large(written, tree, request, options)))
        elif request.kept:
            _keep(written, request.pid)
        else:
            del written.on_trial[request.pid]
    reply(_closed(written, tree, options))


def _add_batch(
    written: _Written, tree: Tree, batch: Batch, slabs: Sequence[U64], reply: Callable[[Free], None]
) -> None:
    """Add snapshots; says when their slab is not needed any more."""
    parts = [
        slabs[batch.slab][offset : offset + taken.words]
        for taken, offset in zip(batch.snapshots, batch.offsets, strict=True)
    ]
    rows, vmas, changed, more = snapshot.build(
        batch.snapshots, parts, tree.page_size, tree.mapcounts == "precise"
    )
    reply(Free(batch.slab))
    owners = [
        Owner(mm, taken.pid, taken.status.name, of_space)
        for mm, (taken, of_space) in enumerate(zip(batch.snapshots, vmas, strict=True), len(written.spaces))
    ]
    written.spaces += [
        dataclasses.replace(
            live.described(taken.pid, taken.status, taken.command_line, unaccounted, taken.held_ms),
            ended_by=taken.ended_by,
        )
        for taken, unaccounted in zip(batch.snapshots, more, strict=True)
    ]
    _add(written, changed, [table(rows, owners)])


def _capture_large(written: _Written, tree: Tree, wanted: Large, options: Options) -> bool:
    """Capture a process that stands still; False if it has ended meanwhile."""
    tables: list[pa.Table] = []
    number = LATER if wanted.on_trial else len(written.spaces)
    seen = tree._replace(root=Path(wanted.root))
    began = time.monotonic()
    try:
        space = live.capture_into(
            seen, wanted.pid, number, lambda rows, owner: tables.append(table(rows, [owner])), options
        )
    except ProcessGoneError:
        return False
    space = space._replace(held_ms=(time.monotonic() - began) * 1000)
    if wanted.on_trial:
        written.on_trial[wanted.pid] = _Captured(space, tables, "exec")
    else:
        _add_large(written, wanted.pid, _Captured(space, tables, "exit"))
    return True


def _keep(written: _Written, pid: int) -> None:
    """Add a capture that was on trial."""
    captured = written.on_trial.pop(pid)
    number = len(written.spaces)
    place = ARROW_SCHEMA.get_field_index("mm")
    tables = [
        rows.set_column(place, ARROW_SCHEMA.field("mm"), constant(number, len(rows)))
        for rows in captured.tables
    ]
    _add_large(written, pid, dataclasses.replace(captured, tables=tables))


def _add_large(written: _Written, pid: int, captured: _Captured) -> None:
    described = live.described_space(pid, captured.space)
    written.spaces.append(dataclasses.replace(described, ended_by=captured.ended_by))
    written.pmd_known &= captured.space.pmd_known
    _add(written, captured.space.changed, captured.tables)


def _add(written: _Written, changed: int, tables: list[pa.Table]) -> None:
    written.changed += changed
    written.waiting += tables
    written.waiting_rows += sum(map(len, tables))
    if written.waiting_rows >= ROW_GROUP_ROWS:
        _flush(written)


def _flush(written: _Written) -> None:
    tables, written.waiting, written.waiting_rows = written.waiting, [], 0
    if tables:
        rows = pa.concat_tables(tables).unify_dictionaries()
        written.extents += len(rows)
        written.writer.append_table(rows)


def _closed(written: _Written, tree: Tree, options: Options) -> Done:
    """Write the rest and the metadata."""
    _flush(written)
    meta: Metadata = dataclasses.replace(
        live.metadata(tree, [], options, held="ptrace", mode="exit"),
        address_spaces=tuple(written.spaces),
        pmd="known" if written.pmd_known else "unknown",
        changed_entries=written.changed,
    )
    written.writer.meta = meta
    written.writer.close()
    return Done(meta, written.extents)
