# SPDX-License-Identifier: Apache-2.0
"""The map: a cell for each 2 MiB, and in it what is mapped there."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import polars as pl
import pytest

import replay
from replay.report import address_map
from tests.commands.running import CAPTURES
from tests.teardown.address_spaces import Piece, trace_of


def pixels(png: bytes) -> np.ndarray:
    """An indexed PNG of ours, decoded: shape (height, width)."""
    width, height = struct.unpack(">II", png[16:24])
    data = png.partition(b"IDAT")[2]
    lines = np.frombuffer(zlib.decompressobj().decompress(data), np.uint8).reshape(height, width + 1)
    assert not lines[:, 0].any()
    return lines[:, 1:]


def test_map_has_a_cell_for_each_two_mebibytes() -> None:
    pieces = [
        Piece(count=512),
        Piece(what="pmd"),
        Piece(type="file", order=2, count=256, new_vma=True, new_table=True),
        Piece(what="swap", count=8, new_vma=True, gap=512 * 40),
    ]
    trace = trace_of(pieces, 9)
    drawn = address_map.draw(trace, 0)
    image = pixels(drawn.png)
    size = address_map.PIXELS
    assert image.shape == (drawn.height, drawn.width) == (size, address_map.ACROSS * size)
    cells = image.reshape(size, address_map.ACROSS, size).transpose(1, 0, 2)
    assert (cells[0][:-1, :-1] == 1).all()
    assert (cells[1][:-1, :-1] == 1 + 9).all()
    # files are striped, and half a cell is filled from below
    assert set(np.unique(cells[2])) == {0, 1 + 2}
    assert not cells[2][:3].any()
    # one mark for the gap, then the swapped pages
    assert address_map.EMPTY_COLOUR and len(address_map.COLOURS) + 1 in cells[3]
    assert cells[4].any()
    assert not cells[5:].any()
    assert drawn.table["cells"].to_list() == [1, 1, 1, 1]
    assert drawn.table["pages"].sum() == trace.frame["pages"].sum()


@pytest.mark.parametrize("name", ["redis", "jvm", "numpy-thp", "postgresql"])
def test_map_of_real_memory(name: str) -> None:
    trace = replay.read_trace(CAPTURES / f"{name}.parquet")
    drawn = address_map.draw(trace, 0)
    assert drawn.table["pages"].sum() == trace.frame["pages"].sum()
    assert drawn.table["cells"].sum() == (trace.frame["vpn"] // 512).n_unique()
    assert sum(region.cells for region in drawn.regions) == drawn.table["cells"].sum()
    assert len(drawn.png) < 50_000
    if name == "numpy-thp":
        huge = drawn.table.filter((pl.col("what") == address_map.PRIVATE) & (pl.col("order") == 9))
        assert huge["cells"].sum() == 63
