# SPDX-License-Identifier: Apache-2.0
"""A trace read from a Parquet file, and checked."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from replay.errors import ReplayError, TraceError, UsageError
from replay.support import shortage
from replay.trace.check import check_frame
from replay.trace.frame import Trace, frame_of
from replay.trace.metadata import Metadata, decode_metadata
from replay.trace.schema import COLUMNS, OPTIONAL, utf8
from replay.trace.totals import checked
from replay.trace.write import ARROW_SCHEMA

TEXT_COLUMNS: Final = [name for name, kind in COLUMNS.items() if kind == "text"]


def read(path: str | Path, *, partial: bool = False) -> Trace:
    """Read and check a trace.

    partial: a trace of which rows are missing is read as well; its `notes` say what is missing. Raises
    `TraceError` for what is not a trace, is cut, has another version, lacks a column, has one of a wrong
    type, says something impossible (see `check.check_frame`), or has lost rows (see `totals.checked`).
    """
    path = Path(path)
    with _open(path) as parquet:
        meta = _metadata(path, parquet)
        _check_columns(parquet.schema_arrow, path)
        try:
            # names repeat on every row: keep them as the dictionaries they are stored as
            with path.open("rb") as file:
                whole = pq.ParquetFile(file, read_dictionary=TEXT_COLUMNS, page_checksum_verification=True)
                table = whole.read(columns=[name for name in COLUMNS if name in whole.schema_arrow.names])
                for name in TEXT_COLUMNS:
                    # no checksum covers how many texts there are, and polars trusts the numbers of texts
                    table.column(name).validate(full=True)
        except (pa.ArrowException, OSError) as error:
            _check_shortage(error, path)
            raise TraceError(f"{path} is damaged ({_first_line(error)}): capture it again") from None
    nulls = [name for name in table.column_names if table.column(name).null_count]
    if nulls:
        raise TraceError(
            f"{path}: column '{nulls[0]}' has empty values: the trace is damaged, capture it again"
        )
    frame = frame_of(table)
    check_frame(frame, meta, str(path))
    return checked(Trace(frame, meta, utf8(path.stem)), str(path), partial=partial)


def read_all(paths: Sequence[Path], *, partial: bool = False) -> list[Trace]:
    """Read traces; those whose files have the same name are called by their paths, to be told apart.

    Raises `UsageError` if one is named twice, and as `read` does.
    """
    traces = [read(path, partial=partial) for path in paths]
    names = Counter(trace.name for trace in traces)
    traces = [
        dataclasses.replace(trace, name=utf8(str(path))) if names[trace.name] > 1 else trace
        for path, trace in zip(paths, traces, strict=True)
    ]
    for number, path in enumerate(paths):
        if any(path.samefile(other) for other in paths[:number]):
            raise UsageError(f"{path} is given twice: its address spaces would be counted twice")
    return traces


def read_metadata(path: Path) -> Metadata:
    """The metadata of a trace, without its rows."""
    with _open(path) as parquet:
        return _metadata(path, parquet)


def _metadata(path: Path, parquet: Any) -> Metadata:
    found = parquet.metadata.metadata or {}
    try:
        pairs = {key.decode(): value.decode() for key, value in found.items()}
    except UnicodeDecodeError:
        raise TraceError(f"{path}: metadata are not text: the trace is damaged, capture it again") from None
    return decode_metadata(pairs, path)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    """The Parquet file, opened here: pyarrow opens no name that is not UTF-8."""
    if path.is_dir():
        raise TraceError(f"{path} is a folder: name a trace file in it")
    try:
        if path.exists() and not path.is_file():
            raise TraceError(f"{path} is not a file that can be read here and there: copy it into one")
        parquet = pq.ParquetFile(path.open("rb"))
    except FileNotFoundError:
        raise TraceError(f"no such file: {path}") from None
    except PermissionError:
        raise TraceError(f"no right to read {path}: traces are readable by their owner only") from None
    except (pa.ArrowException, OSError) as error:
        _check_shortage(error, path)
        if path.stat().st_size == 0:
            raise TraceError(f"{path} is empty: capture it again") from None
        with path.open("rb") as file:
            magic = file.read(4)
        if magic == b"PAR1":
            raise TraceError(f"{path} is a cut or damaged Parquet file: capture or copy it again") from None
        raise TraceError(f"{path} is not a Parquet file: give a trace made by 'replay capture'") from None
    with parquet:
        yield parquet


def _check_shortage(error: Exception, path: Path) -> None:
    """Raise `ReplayError` where it is not the file that is at fault: memory, threads, the disk."""
    line = shortage.told(error)
    if line is None and isinstance(error, OSError) and error.errno is not None:
        line = error.strerror or str(error)
    if line is not None:
        raise ReplayError(f"cannot read {path}: {line}") from None


def _check_columns(schema: pa.Schema, path: Path) -> None:
    for name, kind in COLUMNS.items():
        if name not in schema.names:
            if name in OPTIONAL:
                continue
            raise TraceError(f"{path}: column '{name}' is missing: the trace is damaged, capture it again")
        if schema.names.count(name) > 1:
            raise TraceError(
                f"{path}: column '{name}' is there twice: the trace is damaged, capture it again"
            )
        found = schema.field(name).type
        value = found.value_type if pa.types.is_dictionary(found) else found
        if kind == "text":
            right = (
                pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)
            )
        else:
            right = value == ARROW_SCHEMA.field(name).type
        if not right:
            wanted = "text" if kind == "text" else ARROW_SCHEMA.field(name).type
            raise TraceError(
                f"{path}: column '{name}' is {found}, expected {wanted}: the trace is damaged, "
                "capture it again"
            )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
