# SPDX-License-Identifier: Apache-2.0
"""Where the rows of address spaces go: into row groups of a trace file, or together into memory."""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa

from replay.capture.arrow import no_rows, table
from replay.capture.extents import Extents, Owner
from replay.trace.metadata import Metadata
from replay.trace.write import TraceWriter

FLUSHED_ROWS: Final = 3 << 15
"""Rows that are worth a row group: the more, the smaller the file, but the longer the end of a capture."""


def warm_up() -> None:
    """Write no rows to nowhere: the first write of a process takes milliseconds longer than the next."""
    writer = TraceWriter(pa.BufferOutputStream())
    writer.append_table(no_rows())
    writer.discard()


class Sink:
    """Takes the rows of address spaces in turn. extents: how many it has, `written` of them in the file."""

    def __init__(self, file: Any) -> None:
        self.writer = None if file is None else TraceWriter(file)
        self.tables: list[pa.Table] = []
        self.extents = 0
        self.written = 0

    def take(self, rows: Extents, owner: Owner) -> None:
        """Take rows of one address space."""
        self.extents += len(rows.vpn)
        self.tables.append(table(rows, [owner]))
        if self.writer and sum(map(len, self.tables)) >= FLUSHED_ROWS:
            self._flush()

    def drop(self, extents: int) -> None:
        """Forget the rows after the first `extents`, which are not written yet."""
        while self.extents > extents:
            self.extents -= len(self.tables.pop())

    def rows(self) -> pa.Table:
        """What has not been written."""
        return pa.concat_tables(self.tables or [no_rows()]).unify_dictionaries()

    def close(self, meta: Metadata) -> None:
        """Write what is left, and the metadata; does nothing in memory."""
        if self.writer:
            self._flush()
            self.writer.meta = meta
            self.writer.close()

    def discard(self) -> None:
        """Give up: nothing more is written."""
        if self.writer:
            self.writer.discard()

    def _flush(self) -> None:
        if self.writer and self.tables:
            self.writer.append_table(self.rows())
            self.tables = []
            self.written = self.extents
