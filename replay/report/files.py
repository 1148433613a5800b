# SPDX-License-Identifier: Apache-2.0
"""A table of results as CSV, JSON or Parquet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from replay.errors import ReplayError, UsageError
from replay.support.atomic_file import atomic_file


class Format(StrEnum):
    """Formats of a file, by their endings."""

    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


def format_of(path: Path) -> Format:
    """The format that a path's ending names; `UsageError` if it names none."""
    try:
        return Format(path.suffix.lower().removeprefix("."))
    except ValueError:
        endings = ", ".join(f".{name}" for name in Format)
        raise UsageError(f"cannot tell the format of '{path}': let it end in {endings}") from None


def check_target(path: Path, traces: Sequence[Path]) -> None:
    """Raise, before any work is done, if a result cannot be written there.

    Raises `UsageError` if the ending names no format; `ReplayError` if the file is a trace, and as
    `atomic_file` does.
    """
    format_of(path)
    atomic_file(path, force=True)
    if path.exists() and (any(path.samefile(trace) for trace in traces) or _is_trace(path)):
        raise ReplayError(
            f"'{path}' is a trace, which cannot be made again: choose another name for the result"
        )


def _is_trace(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b"format_version" in (pq.read_metadata(file).metadata or {})
    except (OSError, pa.ArrowException):
        return False


FORMULA = r"^[=+\-@\t\r]"
"""Characters that begin a formula in a spreadsheet."""


def safe(frame: pl.DataFrame) -> pl.DataFrame:
    """The table with an apostrophe before each text that a spreadsheet would take for a formula."""
    return frame.with_columns(
        pl.when(pl.col(pl.String).str.contains(FORMULA))
        .then("'" + pl.col(pl.String))
        .otherwise(pl.col(pl.String))
        .name.keep()
    )


def text(frame: pl.DataFrame, form: Format) -> str:
    """A table as CSV or JSON."""
    return frame.write_csv() if form is Format.CSV else frame.write_json()


def write(frame: pl.DataFrame, path: Path) -> None:
    """Write a table in the format that the path's ending names; the file appears whole or not at all."""
    form = format_of(path)
    content = io.BytesIO()
    if form is Format.PARQUET:
        frame.write_parquet(content)
    else:
        content.write(text(frame, form).encode())
    with atomic_file(path, force=True, mode=0o666) as file:
        file.write(content.getbuffer())
