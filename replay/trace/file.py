# SPDX-License-Identifier: Apache-2.0
"""A trace read from a Parquet file, and checked."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import polars as pl
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


@dataclasses.dataclass(frozen=True)
class Stream:
    """A trace whose rows are read batch by batch. parquet: with texts as dictionaries."""

    path: Path
    meta: Metadata
    parquet: Any

    def batches(self, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """The rows in order, at most `rows` at a time; one batch is decoded while another one is used.

        columns: names; those that the file lacks are left out. Raises `TraceError` where the file is damaged.
        """
        names = [name for name in columns if name in self.parquet.schema_arrow.names]
        # group by group: with all of them, Arrow reads ahead
        found = itertools.chain.from_iterable(
            self.parquet.iter_batches(batch_size=rows, row_groups=[group], columns=names)
            for group in range(self.parquet.num_row_groups)
        )
        with ThreadPoolExecutor(1) as reader, damage(self.path):
            ahead = reader.submit(next, found, None)
            while (batch := ahead.result()) is not None:
                ahead = reader.submit(next, found, None)
                for name in set(TEXT_COLUMNS) & set(names):
                    # no checksum covers how many texts there are
                    batch.column(name).validate(full=True)
                yield batch

    def without_rows(self) -> Trace:
        """The trace, but for its rows."""
        return Trace(frame_of(ARROW_SCHEMA.empty_table()), self.meta, utf8(self.path.stem))

    def frame(self) -> pl.DataFrame:
        """All rows. Raises `TraceError` where the file is damaged, or has empty values."""
        return frame_of(_table(self.path, self.parquet))


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[Stream]:
    """A trace to be read batch by batch: its metadata and columns are checked, its rows are not.

    Raises as `read`, but for what rows say.
    """
    path = Path(path)
    with _open(path) as parquet:
        meta = _metadata(path, parquet)
        _check_columns(parquet.schema_arrow, path)
        with path.open("rb") as file:
            with damage(path):
                # names repeat on every row: keep them as the dictionaries they are stored as
                whole = pq.ParquetFile(file, read_dictionary=TEXT_COLUMNS, page_checksum_verification=True)
            yield Stream(path, meta, whole)


def read(path: str | Path, *, partial: bool = False) -> Trace:
    """Read and check a trace.

    partial: a trace of which rows are missing is read as well; its `notes` say what is missing. Raises
    `TraceError` for what is not a trace, is cut, has another version, lacks a column, has one of a wrong
    type, says something impossible (see `check.check_frame`), or has lost rows (see `totals.checked`).
    """
    path = Path(path)
    with opened(path) as stream:
        frame = stream.frame()
    check_frame(frame, stream.meta, str(path))
    return checked(Trace(frame, stream.meta, utf8(path.stem)), str(path), partial=partial)


def _table(path: Path, parquet: Any) -> pa.Table:
    """All rows of a trace."""
    with damage(path):
        table = parquet.read(columns=[name for name in COLUMNS if name in parquet.schema_arrow.names])
        for name in TEXT_COLUMNS:
            # no checksum covers how many texts there are, and polars trusts the numbers of texts
            table.column(name).validate(full=True)
    nulls = [name for name in table.column_names if table.column(name).null_count]
    if nulls:
        raise TraceError(
            f"{path}: column '{nulls[0]}' has empty values: the trace is damaged, capture it again"
        )
    return table


@contextlib.contextmanager
def damage(path: Path) -> Iterator[None]:
    """Errors of Arrow while rows are read, as `TraceError`; a shortage of the machine as `ReplayError`."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        _check_shortage(error, path)
        raise TraceError(f"{path} is damaged ({_first_line(error)}): capture it again") from None


def read_all(paths: Sequence[Path], *, partial: bool = False) -> list[Trace]:
    """Read traces, called as `names` says. Raises as `names` and `read` do."""
    called = names(paths)
    traces = [read(path, partial=partial) for path in paths]
    return [dataclasses.replace(trace, name=name) for trace, name in zip(traces, called, strict=True)]


def names(paths: Sequence[Path]) -> list[str]:
    """What traces are called: their file names without the ending, or their paths where those are the same.

    Raises `UsageError` if one is named twice.
    """
    stems = [utf8(path.stem) for path in paths]
    for number, path in enumerate(paths):
        if path.exists() and any(other.exists() and path.samefile(other) for other in paths[:number]):
            raise UsageError(f"{path} is given twice: its address spaces would be counted twice")
    often = Counter(stems)
    return [utf8(str(path)) if often[stem] > 1 else stem for path, stem in zip(paths, stems, strict=True)]


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
    line = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    # which chunk it was says nothing of the file
    return re.sub(r"^In chunk \d+: Invalid: ", "", line)
