"""A table of results as CSV, JSON or Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import polars as pl

from replay.errors import UsageError
from replay.trace.whole import whole_file

ENDINGS: Final = (".csv", ".json", ".parquet")


def check_ending(path: Path) -> Path:
    """The path, if its ending names a format; `UsageError` otherwise."""
    if path.suffix not in ENDINGS:
        raise UsageError(f"cannot tell the format of {path}: let it end in {', '.join(ENDINGS)}")
    return path


def write(frame: pl.DataFrame, path: Path) -> None:
    """Write a table in the format that the path's ending names; the file appears whole or not at all."""
    check_ending(path)
    with whole_file(path, force=True, mode=0o666) as file:
        if path.suffix == ".csv":
            frame.write_csv(file)
        elif path.suffix == ".json":
            file.write(frame.write_json().encode())
        else:
            frame.write_parquet(file)
