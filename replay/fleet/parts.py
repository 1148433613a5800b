# SPDX-License-Identifier: Apache-2.0
"""One part of a sweep's result: the counters of one trace, as a Parquet file that names its origin."""

from __future__ import annotations

import io
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from replay.errors import ReplayError
from replay.fleet.sources import Source, stem_of
from replay.support.atomic_file import atomic_file

KEY: Final = b"replay_part"
"""Key of the Parquet footer. Its value says what the part was made from: see `key`."""


def key(source: Source, options: str) -> str:
    """What a part depends on: the trace, its version, and the options of the replay."""
    return json.dumps({"uri": source.uri, "name": source.name, "version": source.version, "options": options})


def path_of(folder: Path, source: Source) -> Path:
    """The file of a trace's part. A checksum of the URI in its name tells traces of one name apart."""
    stem = re.sub(r"[^\w.-]", "_", stem_of(source.uri))[:100]
    return folder / f"{stem}-{zlib.crc32(source.uri.encode()):08x}.parquet"


def is_finished(folder: Path, source: Source, options: str) -> bool:
    """Whether the part is there and whole, and was made from this version of the trace with these options."""
    return _key_in(path_of(folder, source)) == key(source, options).encode()


def check_options(folder: Path, sources: Sequence[Source], options: str) -> None:
    """Refuse a folder with parts of other traces that were made with other options: they do not add up.

    Raises `ReplayError`.
    """
    ours = {path_of(folder, source) for source in sources}
    for path in sorted(folder.glob("*.parquet")):
        made_from = None if path in ours else _key_in(path)
        if made_from and json.loads(made_from)["options"] != options:
            raise ReplayError(f"'{path}' was made with other options: sweep into an empty folder")


def encoded(results: pl.DataFrame, source: Source, options: str) -> bytes:
    """The part as bytes. Equal results give equal bytes, whichever worker makes them."""
    table = results.to_arrow().replace_schema_metadata({KEY: key(source, options).encode()})
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


def write(folder: Path, source: Source, content: bytes) -> None:
    """Write a part. It appears whole or not at all."""
    with atomic_file(path_of(folder, source), force=True, mode=0o666) as file:
        file.write(content)


def is_part(path: Path) -> bool:
    """Whether a file is a part of a sweep."""
    return _key_in(path) is not None


def _key_in(path: Path) -> bytes | None:
    """What a part says that it was made from (see `key`); None of a file that is no whole part."""
    try:
        return (pq.read_metadata(path).metadata or {}).get(KEY)
    except (OSError, pa.ArrowException):
        return None


def read_all(folder: Path) -> pl.DataFrame:
    """All parts of a folder as one result, in order of their traces.

    Raises `ReplayError` if a part is damaged or was made with other options than the rest.
    """
    frames = []
    options: dict[str, Path] = {}
    for path in sorted(folder.glob("*.parquet")):
        if not is_part(path):
            continue
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException):
            raise ReplayError(f"'{path}' is a damaged part: remove it and run the sweep again") from None
        made_from = json.loads(table.schema.metadata[KEY])
        options.setdefault(made_from["options"], path)
        frames.append(pl.DataFrame(pl.from_arrow(table)))
    if len(options) > 1:
        one, other = list(options.values())[:2]
        raise ReplayError(
            f"'{one}' and '{other}' were made with different options: sweep into an empty folder"
        )
    if not frames and any(folder.glob("*.parquet")):
        raise ReplayError(
            f"'{folder}' holds no parts of a sweep: name its traces ({folder}/*.parquet), "
            f"or make parts elsewhere with 'replay sweep {folder} -o PARTS'"
        )
    if not frames:
        raise ReplayError(
            f"'{folder}' holds no parts of a sweep: make them with 'replay sweep TRACE... -o {folder}'"
        )
    return pl.concat(frames).sort("trace", maintain_order=True)
