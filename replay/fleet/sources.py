# SPDX-License-Identifier: Apache-2.0
"""Where traces are: files, folders, globs, and URIs of object stores.

Everything local is a path. Everything with a scheme (`s3://`, `gs://`, `memory://`) goes through pyarrow's
file systems, or through fsspec where pyarrow has none.
"""

from __future__ import annotations

import glob
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow.fs as pafs

from replay.errors import ReplayError

ARROW_SCHEMES = ("s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss", "file")
"""Schemes that pyarrow opens itself."""

ENDING = ".parquet"
"""The ending of traces in a folder."""


class Source(NamedTuple):
    """One trace.

    uri: a path or a URI; name: what results call it; version: changes whenever the content does.
    """

    uri: str
    name: str
    version: str


def is_remote(word: str) -> bool:
    """Whether a word of the command line is a URI, not a path."""
    return "://" in word


def find(words: Sequence[str]) -> list[Source]:
    """The traces that paths, folders, globs and URIs name, ordered by URI, each once.

    Traces of one file name are called by their URIs. Raises `ReplayError` if nothing is found, or if a store
    or a folder cannot be read.
    """
    found = dict[str, str]()
    for word in words:
        versions = dict(_remote(word) if is_remote(word) else _local(word))
        if not versions:
            raise ReplayError(
                f"no trace in '{word}': name traces, or a folder with files that end in {ENDING}"
            )
        found |= versions
    names = Counter(map(stem_of, found))
    return [
        Source(uri, uri if names[stem] > 1 else stem, version)
        for uri, version in sorted(found.items())
        for stem in [stem_of(uri)]
    ]


def stem_of(uri: str) -> str:
    """The file name of a path or URI, without its ending and without a URI's query."""
    return PurePosixPath(uri.partition("?")[0] if is_remote(uri) else uri).stem


def _local(word: str) -> Iterable[tuple[str, str]]:
    path = Path(word)
    if path.is_dir():
        paths = sorted(file for file in path.rglob(f"*{ENDING}") if not file.name.startswith("."))
    elif path.exists() or not glob.has_magic(word):
        paths = [path]
    else:
        paths = [Path(name) for name in sorted(glob.glob(word, recursive=True))]  # noqa: PTH207 - any root
    for file in paths:
        try:
            status = file.stat()
        except FileNotFoundError:
            raise ReplayError(f"no such file: {file}") from None
        except OSError as error:
            raise ReplayError(f"cannot read {file}: {error.strerror}") from None
        yield str(file.resolve()), f"{status.st_size} bytes, {status.st_mtime_ns} ns"


def _remote(word: str) -> Iterable[tuple[str, str]]:
    scheme = word.partition("://")[0]
    try:
        system, path = _file_system(word)
        if glob.has_magic(path):
            parent = path[: min(path.index(sign) for sign in "*?[" if sign in path)].rpartition("/")[0]
            entries = system.get_file_info(pafs.FileSelector(parent, recursive=True))
            entries = [entry for entry in entries if PurePosixPath(entry.path).match(path)]
        else:
            [entry] = system.get_file_info([path])
            if entry.type == pafs.FileType.NotFound:
                # a prefix need not exist as an object of its own
                entries = system.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
            elif entry.type == pafs.FileType.Directory:
                entries = system.get_file_info(pafs.FileSelector(path, recursive=True))
            else:
                entries = [entry]
    except Exception as error:  # a store's client raises what it likes
        raise ReplayError(f"cannot read {word}: {_first_line(error)}") from None
    query = word.partition("?")[2]
    for entry in entries:
        if entry.type == pafs.FileType.File and entry.path.endswith(ENDING):
            uri = f"{scheme}://{entry.path}" + (f"?{query}" if query else "")
            yield uri, f"{entry.size} bytes, {entry.mtime_ns} ns"


def _file_system(uri: str) -> tuple[Any, str]:
    """The file system of a URI, and the path in it: pyarrow's own if it has one, else fsspec's."""
    scheme = uri.partition("://")[0]
    if scheme in ARROW_SCHEMES:
        system, path = pafs.FileSystem.from_uri(uri)
        return system, path
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise ImportError(f"pyarrow has no file system for {scheme}://: pip install fsspec") from None
    system, path = url_to_fs(uri)
    return pafs.PyFileSystem(pafs.FSSpecHandler(system)), path


def fetched(source: Source, folder: Path) -> Path:
    """A trace as a local file: the file itself, or a copy in `folder`, which the caller removes.

    Raises `ReplayError` if the store cannot be read or the copy cannot be written.
    """
    if not is_remote(source.uri):
        return Path(source.uri)
    copy = folder / "trace.parquet"
    try:
        system, path = _file_system(source.uri)
        with system.open_input_stream(path) as stream, copy.open("wb") as out:
            shutil.copyfileobj(stream, out, 1 << 20)
    except Exception as error:  # a store's client raises what it likes
        raise ReplayError(f"cannot read {source.uri}: {_first_line(error)}") from None
    return copy


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
