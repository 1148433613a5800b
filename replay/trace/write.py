# SPDX-License-Identifier: Apache-2.0
"""A trace written as a Parquet file, in pieces, whole or not at all.

Metadata are the key-value pairs of the Parquet footer, so that any Parquet reader shows them; values that
are not text are JSON. The Arrow schema is left out of the file on purpose: pairs that are known only when the
last row is written would otherwise be invisible to `pyarrow.parquet.read_table()`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from replay.support.atomic_file import atomic_file
from replay.trace.metadata import Metadata, encode_metadata
from replay.trace.schema import COLUMNS

if TYPE_CHECKING:
    import polars as pl

ROW_GROUP_ROWS: Final = 1 << 18

DELTA_COLUMNS: Final = ("vpn", "vma_start")
"""Columns that grow along the file: stored as differences."""

FRAME_COLUMNS: Final = ("pfn", "folio")
"""Page frames have no order, but processes share them: stored byte by byte, so that zstd sees a shared file's
frames come back (differences of them are as long as they are, and hide that). The rest are dictionaries."""


class TraceWriter:
    """Appends row groups to a trace under way; `meta` must be set before it is closed."""

    def __init__(self, file: Any) -> None:
        self.meta: Metadata | None = None
        self._parquet = pq.ParquetWriter(
            file,
            ARROW_SCHEMA,
            store_schema=False,
            compression="zstd",
            use_dictionary=[
                name
                for name, kind in COLUMNS.items()
                if name not in (*DELTA_COLUMNS, *FRAME_COLUMNS) and kind != "bool"
            ],
            column_encoding=dict.fromkeys(DELTA_COLUMNS, "DELTA_BINARY_PACKED")
            | dict.fromkeys(FRAME_COLUMNS, "BYTE_STREAM_SPLIT"),
            write_statistics=["mm", "vpn"],
            write_page_checksum=True,
        )

    def append(self, frame: pl.DataFrame) -> None:
        """Write extents (columns of `schema.COLUMNS`); at most `ROW_GROUP_ROWS` of them to a row group."""
        self.append_table(frame.select(list(COLUMNS)).to_arrow().cast(ARROW_SCHEMA))

    def append_table(self, table: pa.Table) -> None:
        """Write extents given as an Arrow table of `ARROW_SCHEMA`."""
        self._parquet.write_table(table, row_group_size=ROW_GROUP_ROWS)

    def close(self) -> None:
        """Write the footer."""
        if self.meta is None:
            raise ValueError("metadata were not set")
        self._parquet.add_key_value_metadata(encode_metadata(self.meta))
        self._parquet.close()

    def discard(self) -> None:
        """Give up: nothing more is written, not even when this object is collected."""
        self._parquet.is_open = False


TEXT: Final = pa.dictionary(pa.uint32(), pa.large_string())

ARROW_SCHEMA: Final = pa.schema(
    [
        pa.field(name, TEXT if kind == "text" else pa.type_for_alias(kind), nullable=False)
        for name, kind in COLUMNS.items()
    ]
)
"""No column has empty values, and saying so saves the writer a quarter of its time."""


@contextlib.contextmanager
def open_writer(path: str | Path, *, force: bool = False) -> Iterator[TraceWriter]:
    """Write a trace to `path` in pieces: the file appears, whole, when the block ends without an error."""
    with atomic_file(path, force=force) as file:
        writer = TraceWriter(file)
        try:
            yield writer
            writer.close()
        except BaseException:
            writer.discard()
            raise
