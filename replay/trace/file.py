"""A trace read from a Parquet file, and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from replay.errors import TraceError
from replay.trace.check import check_frame
from replay.trace.frame import Trace, frame_of
from replay.trace.metadata import Metadata, decode_metadata
from replay.trace.schema import COLUMNS
from replay.trace.write import ARROW_SCHEMA

TEXT_COLUMNS: Final = [name for name, kind in COLUMNS.items() if kind == "text"]


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
        table = pq.ParquetFile(path, read_dictionary=TEXT_COLUMNS).read(columns=list(COLUMNS))
    except (pa.ArrowException, OSError) as error:
        raise TraceError(f"{path} is damaged ({_first_line(error)}): capture it again") from None
    nulls = [name for name in COLUMNS if table.column(name).null_count]
    if nulls:
        raise TraceError(
            f"{path}: column '{nulls[0]}' has empty values: the trace is damaged, capture it again"
        )
    frame = frame_of(table)
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
    for name, kind in COLUMNS.items():
        if name not in schema.names:
            raise TraceError(f"{path}: column '{name}' is missing: the trace is damaged, capture it again")
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
