# SPDX-License-Identifier: Apache-2.0
"""Rows of a trace as NumPy arrays, batch by batch: what the compiled replay reads."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from replay.errors import TraceError
from replay.jit.compiled import I64, U8, U32
from replay.trace.schema import COLUMNS, KINDS, PERMISSIONS, VMA_FLAGS

BATCH_ROWS: Final = 1 << 15
"""Rows that are decoded at a time: some 5 MiB."""

UNKNOWN: Final = -1
"""Code of a text that no trace may have."""

LOCKED: Final = "lo"
"""VM_LOCKED among VmFlags."""


class Columns(NamedTuple):
    """Columns of some rows, all of shape (rows,). Names and units are those of `schema.COLUMNS`.

    What is 64 bits wide is int64: unsigned numbers above 2^63 - 1 are negative here. Texts are codes: `kind`
    is the place in `KINDS`; the others are numbers that are equal where the texts are, `UNKNOWN` for
    permissions, flags and kinds that no kernel writes. `vma_flags` is even, or odd where the VMA is
    VM_LOCKED. `contiguous`: the entries have the contiguous bit of arm64.
    """

    mm: U32
    pid: U32
    comm: I64
    vma: U32
    vma_start: I64
    vma_pages: I64
    vma_perms: I64
    vma_flags: I64
    vma_name: I64
    vpn: I64
    pages: U32
    kind: I64
    pfn: I64
    uffd_wp: U8
    kpageflags: I64
    mapcount: U32
    own: U32
    dirty: U8
    folio: I64
    order: U8
    folio_mapped: U32
    folio_mapcount: I64
    memcg: I64
    contiguous: U8


def blank(rows: int) -> Columns:
    """Columns of so many rows that say nothing."""
    kinds = typing.get_type_hints(Columns, include_extras=True)
    return Columns(**{name: np.zeros(rows, kind.__metadata__[0].dtype) for name, kind in kinds.items()})


def last_row(rows: Columns) -> Columns:
    """The last one of some rows, copied, so that the others can go."""
    return Columns(*[column[-1:].copy() for column in rows])  # type: ignore[arg-type]


READ: Final = [name for name in COLUMNS if name in Columns._fields]
"""The columns that a replay looks at."""

DTYPES: Final = {"uint32": np.uint32, "uint64": np.int64, "int64": np.int64, "uint8": np.uint8}


class Codes:
    """Numbers for the texts of a trace, the same ones in all its batches."""

    def __init__(self, format_version: int) -> None:
        self._texts: dict[str, int] = {}
        kinds = KINDS if format_version > 1 else KINDS[: KINDS.index("marker")]
        self._kinds = {kind: number for number, kind in enumerate(kinds)}

    def of(self, column: str, text: str) -> int:
        """The code of a text in a column."""
        if column == "kind":
            return self._kinds.get(text, UNKNOWN)
        if column == "vma_perms" and text not in PERMISSIONS:
            return UNKNOWN
        if column == "vma_flags" and not re.fullmatch(VMA_FLAGS, text):
            return UNKNOWN
        number = self._texts.setdefault(text, len(self._texts))
        if column == "vma_flags":
            return 2 * number + (LOCKED in text.split())
        return number


NONE: Final = np.zeros(BATCH_ROWS, np.uint8)
"""A flag that no row has."""


def columns(batch: pa.RecordBatch, codes: Codes, where: str) -> Columns:
    """The columns of some rows. batch: with the columns of a trace, of which `OPTIONAL` ones may lack.
    where: how a message names the trace.

    Raises `TraceError` for empty values.
    """
    rows = batch.num_rows
    for name, array in zip(batch.schema.names, batch.columns, strict=True):
        if array.null_count:
            raise TraceError(
                f"{where}: column '{name}' has empty values: the trace is damaged, capture it again"
            )
    none = NONE[:rows] if rows <= len(NONE) else np.zeros(rows, np.uint8)
    found: dict[str, npt.NDArray[np.generic]] = {"contiguous": none}
    for name in READ:
        place = batch.schema.get_field_index(name)
        if place < 0:
            found[name] = np.zeros(rows, DTYPES[COLUMNS[name]])
            continue
        array = batch.column(place)
        if COLUMNS[name] == "text":
            found[name] = _codes(name, array, codes)
        elif COLUMNS[name] == "bool":
            found[name] = array.to_numpy(zero_copy_only=False).view(np.uint8)
        else:
            found[name] = array.to_numpy().view(DTYPES[COLUMNS[name]])
    return Columns(**found)  # type: ignore[arg-type]


def _codes(name: str, array: pa.Array, codes: Codes) -> npt.NDArray[np.int64]:
    """The codes of a column of texts."""
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    of_text = np.array([codes.of(name, text) for text in array.dictionary.to_pylist()], np.int64)
    numbers = array.indices.to_numpy()
    return of_text[numbers] if len(of_text) else np.zeros(0, np.int64)


def batches(parts: Iterable[pa.RecordBatch], codes: Codes, where: str) -> Iterator[Columns]:
    """The columns of each batch that has rows. where: how a message names the trace."""
    for part in parts:
        if part.num_rows:
            yield columns(part, codes, where)
