# SPDX-License-Identifier: Apache-2.0
"""A trace in memory: its rows as a polars DataFrame, and what is known beside them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Final

import polars as pl

from replay.trace.metadata import Metadata
from replay.trace.schema import COLUMNS, OPTIONAL
from replay.trace.write import open_writer

DTYPES: Final[dict[str, pl.DataType]] = {
    "uint8": pl.UInt8(),
    "uint32": pl.UInt32(),
    "uint64": pl.UInt64(),
    "int64": pl.Int64(),
    "bool": pl.Boolean(),
    "text": pl.Categorical(),
}

SCHEMA: Final[dict[str, pl.DataType]] = {name: DTYPES[kind] for name, kind in COLUMNS.items()}
"""Column -> polars type."""


@dataclasses.dataclass(frozen=True)
class Trace:
    """Extents (`frame`, columns of `SCHEMA`) and what is known beside them (`meta`).

    left_out: address spaces that are not replayed, for none of their rows is there. notes: what is missing.
    Both are of the frame `checked`; see `totals.checked`.
    """

    frame: pl.DataFrame
    meta: Metadata
    name: str = ""
    left_out: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()
    checked: pl.DataFrame | None = dataclasses.field(default=None, repr=False, compare=False)

    def write(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the trace to `path`, whole or not at all; an existing file only with `force`."""
        with open_writer(path, force=force) as writer:
            writer.append(complete(self.frame))
            writer.meta = self.meta
        return Path(path)

    def as_part(self, frame: pl.DataFrame, what: str = "rows chosen by hand") -> Trace:
        """A trace of some of the rows, marked as a part, so that the others do not count as lost.

        frame: rows of this trace, in the same order. what: says which, for those who read it.
        """
        meta = dataclasses.replace(self.meta, part=what)
        return dataclasses.replace(self, frame=frame, meta=meta)


def frame_of(table: Any) -> pl.DataFrame:
    """Rows given as an Arrow table -> the frame of a `Trace`."""
    return complete(pl.DataFrame(pl.from_arrow(table))).cast(SCHEMA)  # type: ignore[arg-type]


def complete(frame: pl.DataFrame) -> pl.DataFrame:
    """The columns of a trace in order; those that a file may lack are filled in with 0."""
    missing = [name for name in OPTIONAL if name not in frame.columns]
    return frame.with_columns(pl.lit(0, SCHEMA[name]).alias(name) for name in missing).select(list(COLUMNS))
