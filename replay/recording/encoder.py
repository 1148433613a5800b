"""In the encoder's process (see `handover`): snapshots become the rows of a trace."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from replay.capture import live
from replay.capture.address_space import Options
from replay.capture.arrow import table
from replay.capture.extents import Owner
from replay.errors import ProcessGoneError
from replay.procfs.files import U64
from replay.procfs.source import Tree
from replay.recording import snapshot
from replay.recording.handover import Batch, Captured, Done, Free, Large
from replay.trace.metadata import AddressSpace, Metadata
from replay.trace.write import ROW_GROUP_ROWS, TraceWriter


@dataclass
class _Written:
    """What was read so far; tables wait until they fill a row group."""

    writer: TraceWriter
    spaces: list[AddressSpace] = field(default_factory=list)
    pmd_known: bool = True
    changed: int = 0
    extents: int = 0
    waiting: list[pa.Table] = field(default_factory=list)
    waiting_rows: int = 0


def write_trace(
    file: Any,
    tree: Tree,
    options: Options,
    requests: Iterator[Batch | Large],
    reply: Callable[[Free | Captured | Done], None],
    slabs: Sequence[U64],
) -> None:
    """Write what is requested to a binary file, as a trace."""
    written = _Written(TraceWriter(file))
    for request in requests:
        if isinstance(request, Batch):
            _add_batch(written, tree, request, slabs, reply)
        else:
            reply(Captured(_add_large(written, tree, request, options)))
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
        live.described(taken.pid, taken.status, taken.command_line, unaccounted, taken.held_ms)
        for taken, unaccounted in zip(batch.snapshots, more, strict=True)
    ]
    _add(written, changed, [table(rows, owners)])


def _add_large(written: _Written, tree: Tree, wanted: Large, options: Options) -> bool:
    """Capture a process that stands still; False if it has ended meanwhile."""
    tables: list[pa.Table] = []
    number, seen = len(written.spaces), tree._replace(root=Path(wanted.root))
    began = time.monotonic()
    try:
        captured = live.capture_into(
            seen, wanted.pid, number, lambda rows, owner: tables.append(table(rows, [owner])), options
        )
    except ProcessGoneError:
        return False
    held_ms = (time.monotonic() - began) * 1000
    written.spaces.append(live.described_space(wanted.pid, captured._replace(held_ms=held_ms)))
    written.pmd_known &= captured.pmd_known
    _add(written, captured.changed, tables)
    return True


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
