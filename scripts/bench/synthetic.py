# SPDX-License-Identifier: Apache-2.0
"""Traces of any size, made up and written row group by row group: what bench_replay measures on."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from replay.trace.kpageflags import KPF_ANON, KPF_LRU, KPF_SWAPBACKED, bit
from replay.trace.metadata import AddressSpace, Metadata
from replay.trace.schema import COLUMNS
from replay.trace.write import ARROW_SCHEMA, ROW_GROUP_ROWS, open_writer

FIRST_VPN: Final = 1 << 30
FIRST_PFN: Final = 1 << 12
MULTIPLIER: Final = 0x9E3779B1
"""An odd number: times it, modulo a power of two, numbers are in another order, each once."""

FLAGS: Final = bit(KPF_ANON) | bit(KPF_SWAPBACKED) | bit(KPF_LRU)


class Shape(NamedTuple):
    """What a trace is made of: extents, extents of each address space, and the order of each folio."""

    extents: int
    per_space: int
    order: int


def write(path: Path, shape: Shape) -> None:
    """Write a trace of anonymous memory: one folio per extent, mapped as a whole, frames in no order."""
    spaces = -(-shape.extents // shape.per_space)
    with open_writer(path, force=True) as writer:
        for first in range(0, shape.extents, ROW_GROUP_ROWS):
            writer.append_table(_rows(shape, np.arange(first, min(first + ROW_GROUP_ROWS, shape.extents))))
        writer.meta = Metadata(
            tuple(_space(shape, mm) for mm in range(spaces)),
            kernel_release="6.12.0",
            mode="exit",
            dirty="known",
        )


def _space(shape: Shape, mm: int) -> AddressSpace:
    extents = min(shape.per_space, shape.extents - mm * shape.per_space)
    pages = extents << shape.order
    return AddressSpace(1 + mm, "synthetic", -(-pages // 512) + 2, rss_anon=pages, unaccounted={})


def _rows(shape: Shape, number: np.ndarray[tuple[int], np.dtype[np.int64]]) -> pa.Table:
    """The rows of some extents, given by their numbers in the trace."""
    size = 1 << shape.order
    mm = number // shape.per_space
    within = number % shape.per_space
    room = 1 << (2 * shape.extents - 1).bit_length()
    frame = (number * MULTIPLIER) & (room - 1)
    head = (FIRST_PFN // size + 1 + frame) * size
    per_space = np.minimum(shape.per_space, shape.extents - mm * shape.per_space)
    numbers = {
        "mm": mm,
        "pid": 1 + mm,
        "vma_start": np.full(len(number), FIRST_VPN),
        "vma_pages": per_space * size,
        "vpn": FIRST_VPN + within * size,
        "pages": np.full(len(number), size),
        "pfn": head,
        "folio": head,
        "kpageflags": np.full(len(number), FLAGS),
        "mapcount": np.ones(len(number)),
        "own": np.ones(len(number)),
        "order": np.full(len(number), shape.order),
        "folio_mapped": np.full(len(number), size),
        "folio_mapcount": np.full(len(number), size),
    }
    texts = {"comm": "synthetic", "vma_perms": "rw-p", "vma_flags": "rd wr", "vma_name": "", "kind": "page"}
    columns = []
    for name, kind in COLUMNS.items():
        if kind == "text":
            codes = pa.array(np.zeros(len(number), np.uint32))
            columns.append(pa.DictionaryArray.from_arrays(codes, pa.array([texts[name]], pa.large_string())))
        else:
            of_type = np.bool_ if kind == "bool" else np.dtype(kind)
            columns.append(pa.array(np.asarray(numbers.get(name, np.zeros(len(number)))).astype(of_type)))
    return pa.Table.from_arrays(columns, schema=ARROW_SCHEMA)
