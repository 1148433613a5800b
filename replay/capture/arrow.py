# SPDX-License-Identifier: Apache-2.0
"""Extents -> Arrow tables with the columns of a trace. The only module of capture that needs pyarrow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from replay.capture.extents import Extents, Owner
from replay.trace.schema import KINDS, utf8
from replay.trace.write import ARROW_SCHEMA


def table(extents: Extents, owners: Sequence[Owner]) -> pa.Table:
    """Rows, in order, as a table of `ARROW_SCHEMA`; their `vma` counts through the VMAs of all owners."""
    vmas = [(owner, number, vma) for owner in owners for number, vma in enumerate(owner.vmas)]
    rows = np.diff(np.searchsorted(extents.vma, np.arange(len(vmas) + 1)))

    def of_vma(values: Iterable[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        return np.repeat(np.fromiter(values, dtype, len(vmas)), rows)

    def text_of_vma(values: Iterable[str]) -> pa.DictionaryArray:
        codes: dict[str, int] = {}
        of_each = [codes.setdefault(utf8(value), len(codes)) for value in values]
        return _dictionary(of_vma(of_each, np.uint32), list(codes))

    values: dict[str, Any] = {
        "mm": of_vma((owner.mm for owner, _, _ in vmas), np.uint32),
        "pid": of_vma((owner.pid for owner, _, _ in vmas), np.uint32),
        "comm": text_of_vma(owner.comm for owner, _, _ in vmas),
        "vma": of_vma((number for _, number, _ in vmas), np.uint32),
        "vma_start": of_vma((vma.start for _, _, vma in vmas), np.uint64),
        "vma_pages": of_vma((vma.pages for _, _, vma in vmas), np.uint64),
        "vma_perms": text_of_vma(vma.perms for _, _, vma in vmas),
        "vma_flags": text_of_vma(vma.flags for _, _, vma in vmas),
        "vma_name": text_of_vma(vma.name for _, _, vma in vmas),
        "kind": _dictionary(extents.kind.astype(np.uint32), KINDS),
    }
    columns = extents._asdict() | values
    return pa.Table.from_arrays([_array(columns[name]) for name in ARROW_SCHEMA.names], schema=ARROW_SCHEMA)


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
