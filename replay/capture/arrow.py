# SPDX-License-Identifier: Apache-2.0
"""Extents -> Arrow tables with the columns of a trace. The only module of capture that needs pyarrow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from replay.capture.extents import Extents, Owner
from replay.trace.schema import KINDS, utf8
from replay.trace.write import ARROW_SCHEMA


def table(extents: Extents, owners: Sequence[Owner]) -> pa.Table:
    """Rows, in order, as a table of `ARROW_SCHEMA`; their `vma` counts through the VMAs of all owners."""
    vmas = [vma for owner in owners for vma in owner.vmas]
    counts = [len(owner.vmas) for owner in owners]
    rows = np.diff(np.searchsorted(extents.vma, np.arange(len(vmas) + 1)))
    owner_of = np.repeat(np.arange(len(owners)), counts)

    def of_vma(values: npt.ArrayLike, dtype: npt.DTypeLike = np.uint32) -> npt.NDArray[Any]:
        return np.repeat(np.asarray(values, dtype), rows)

    def of_owner(values: Sequence[int]) -> npt.NDArray[Any]:
        return of_vma(np.array(values, np.uint32)[owner_of])

    comms, comm_texts = _coded([owner.comm for owner in owners])
    values: dict[str, Any] = {
        "mm": of_owner([owner.mm for owner in owners]),
        "pid": of_owner([owner.pid for owner in owners]),
        "comm": _dictionary(of_owner(comms), comm_texts),
        "vma": of_vma(np.concatenate([np.arange(count) for count in counts])),
        "vma_start": of_vma([vma.start for vma in vmas], np.uint64),
        "vma_pages": of_vma([vma.pages for vma in vmas], np.uint64),
        "kind": _dictionary(extents.kind.astype(np.uint32), KINDS),
    }
    for name in ("perms", "flags", "name"):
        codes, texts = _coded([getattr(vma, name) for vma in vmas])
        values[f"vma_{name}"] = _dictionary(of_vma(codes), texts)
    columns = extents._asdict() | values
    return pa.Table.from_arrays([_array(columns[name]) for name in ARROW_SCHEMA.names], schema=ARROW_SCHEMA)


def _coded(values: Sequence[str]) -> tuple[list[int], list[str]]:
    """The number of each text among the different ones, and these, as UTF-8 can have them."""
    texts: dict[str, int] = {}
    number_of = {value: texts.setdefault(utf8(value), len(texts)) for value in dict.fromkeys(values)}
    return [number_of[value] for value in values], list(texts)


def _dictionary(codes: npt.NDArray[np.uint32], texts: Sequence[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(_array(codes), _texts(texts))


def _texts(texts: Sequence[str]) -> pa.Array:
    """Texts as large_string; `pyarrow.array()` would load pandas where that is installed."""
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.large_string(), len(encoded), buffers)


def constant(number: int, rows: int) -> pa.Array:
    """A column of uint32 that is one number; `pyarrow.scalar()` would load pandas too."""
    return _array(np.full(rows, number, np.uint32))


def no_rows() -> pa.Table:
    """A table without rows; `Schema.empty_table()` would load pandas too."""
    return pa.Table.from_batches([], schema=ARROW_SCHEMA)


def _array(values: Any) -> pa.Array:
    """The values of a NumPy array; `pyarrow.array()` would load numpy.ma, which takes 8 ms, and pandas."""
    if isinstance(values, pa.Array):
        return values
    kind = pa.from_numpy_dtype(values.dtype)
    words = np.packbits(values, bitorder="little") if values.dtype == np.bool_ else values
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(words)])
