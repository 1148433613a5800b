"""A trace as a Parquet file: reading, writing, metadata.

Metadata are the key-value pairs of the Parquet footer, so that any Parquet reader shows them; values
that are not text are JSON. The Arrow schema is left out of the file on purpose: pairs that are known
only when the last row is written would otherwise be invisible to `pyarrow.parquet.read_table()`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from replay.errors import ReplayError, TraceError
from replay.trace.check import check_frame
from replay.trace.metadata import Metadata, decode_metadata, encode_metadata
from replay.trace.schema import SCHEMA

ROW_GROUP_ROWS: Final = 1 << 18

DELTA_COLUMNS: Final = ("vpn", "pfn", "folio", "vma_start")
"""Columns that grow along the file: stored as differences, the rest as dictionaries."""

TEXT_COLUMNS: Final = tuple(name for name, dtype in SCHEMA.items() if dtype == pl.Categorical)


@dataclasses.dataclass(frozen=True)
class Trace:
    """Extents (`frame`, columns of `schema.SCHEMA`) and what is known beside them (`meta`)."""

    frame: pl.DataFrame
    meta: Metadata
    name: str = ""

    def write(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the trace to `path`, whole or not at all; an existing file only with `force`."""
        with open_writer(path, force=force) as writer:
            writer.append(self.frame)
            writer.meta = self.meta
        return Path(path)


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
                name for name in SCHEMA if name not in DELTA_COLUMNS and SCHEMA[name] != pl.Boolean
            ],
            column_encoding=dict.fromkeys(DELTA_COLUMNS, "DELTA_BINARY_PACKED"),
            write_statistics=["mm", "vpn"],
        )

    def append(self, frame: pl.DataFrame) -> None:
        """Write extents (columns of `SCHEMA`); at most `ROW_GROUP_ROWS` of them to a row group."""
        self.append_table(frame.select(list(SCHEMA)).to_arrow().cast(ARROW_SCHEMA))

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


def _arrow_type(dtype: pl.DataType) -> pa.DataType:
    if dtype == pl.Categorical:
        return pa.dictionary(pa.uint32(), pa.large_string())
    return pl.Series([], dtype=dtype).to_arrow().type


ARROW_SCHEMA: Final = pa.schema(
    [pa.field(name, _arrow_type(dtype), nullable=False) for name, dtype in SCHEMA.items()]
)
"""No column has empty values, and saying so saves the writer a quarter of its time."""


@contextlib.contextmanager
def open_writer(path: str | Path, *, force: bool = False) -> Iterator[TraceWriter]:
    """Write a trace to `path` in pieces: the file appears, whole, when the block ends without an error."""
    with whole_file(path, force=force) as file:
        writer = TraceWriter(file)
        try:
            yield writer
            writer.close()
        except BaseException:
            writer.discard()
            raise


class whole_file:  # noqa: N801 - used like a function
    """Context manager: a binary file that appears at `path` whole or not at all.

    mode: its permissions, less the umask; by default only the owner's, for traces show addresses and names.
    """

    def __init__(self, path: str | Path, *, force: bool = False, mode: int = 0o600) -> None:
        self.path = Path(path)
        self.force = force
        self.mode = mode
        if self.path.is_dir():
            raise ReplayError(f"cannot write {path}: it is a folder: name a file in it")
        if self.path.exists() and not force:
            raise ReplayError(f"{path} exists: choose another name with -o, or overwrite it with --force")

    def __enter__(self) -> Any:
        self.partial = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.partial")
        try:
            self.file = os.fdopen(os.open(self.partial, os.O_CREAT | os.O_EXCL | os.O_RDWR, self.mode), "w+b")
        except OSError as error:
            raise ReplayError(f"cannot write {self.path}: {error.strerror}") from None
        return self.file

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.file.flush()
                os.fsync(self.file.fileno())
                self.file.close()
                if not self.force and self.path.exists():
                    raise ReplayError(
                        f"{self.path} was made by someone else meanwhile: choose another name with -o"
                    )
                self.partial.rename(self.path)
        except OSError as failure:
            raise ReplayError(f"cannot write {self.path}: {failure.strerror}") from None
        finally:
            with contextlib.suppress(OSError):
                self.file.close()
            self.partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise ReplayError(f"cannot write {self.path}: {os.strerror(error.errno)}") from None


def read(path: str | Path) -> Trace:
    """Read and check a trace.

    Raises `TraceError` for what is not a trace, is cut, has another version, lacks a column, has one of
    a wrong type, or says something impossible (see `check.check_frame`).
    """
    path = Path(path)
    parquet = _open(path)
    meta = read_metadata(path, parquet)
    _check_columns(parquet.schema_arrow, path)
    try:
        # names repeat on every row: keep them as the dictionaries they are stored as
        table = pq.ParquetFile(path, read_dictionary=list(TEXT_COLUMNS)).read(columns=list(SCHEMA))
    except (pa.ArrowException, OSError) as error:
        raise TraceError(f"{path} is damaged ({_first_line(error)}): capture it again") from None
    nulls = [name for name in SCHEMA if table.column(name).null_count]
    if nulls:
        raise TraceError(
            f"{path}: column '{nulls[0]}' has empty values: the trace is damaged, capture it again"
        )
    frame = pl.DataFrame(pl.from_arrow(table)).cast(SCHEMA)  # type: ignore[arg-type]
    check_frame(frame, meta, str(path))
    return Trace(frame, meta, path.stem)


def read_metadata(path: Path, parquet: Any = None) -> Metadata:
    """The metadata of a trace, without its rows."""
    parquet = _open(path) if parquet is None else parquet
    pairs = {key.decode(): value.decode() for key, value in (parquet.metadata.metadata or {}).items()}
    return decode_metadata(pairs, path)


def _open(path: Path) -> Any:
    if path.is_dir():
        raise TraceError(f"{path} is a folder: name a trace file in it")
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise TraceError(f"no such file: {path}") from None
    except PermissionError:
        raise TraceError(f"no right to read {path}: traces are readable by their owner only") from None
    except (pa.ArrowException, OSError):
        if path.stat().st_size == 0:
            raise TraceError(f"{path} is empty: capture it again") from None
        with path.open("rb") as file:
            magic = file.read(4)
        if magic == b"PAR1":
            raise TraceError(f"{path} is a cut or damaged Parquet file: capture or copy it again") from None
        raise TraceError(f"{path} is not a Parquet file: give a trace made by 'replay capture'") from None


def _check_columns(schema: pa.Schema, path: Path) -> None:
    for name, dtype in SCHEMA.items():
        if name not in schema.names:
            raise TraceError(f"{path}: column '{name}' is missing: the trace is damaged, capture it again")
        found = schema.field(name).type
        value = found.value_type if pa.types.is_dictionary(found) else found
        if dtype == pl.Categorical:
            right = (
                pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)
            )
        else:
            right = value == ARROW_SCHEMA.field(name).type
        if not right:
            wanted = "text" if dtype == pl.Categorical else ARROW_SCHEMA.field(name).type
            raise TraceError(
                f"{path}: column '{name}' is {found}, expected {wanted}: the trace is damaged, "
                "capture it again"
            )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
