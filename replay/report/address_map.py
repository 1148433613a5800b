# SPDX-License-Identifier: Apache-2.0
"""The address-space map: a cell for each 2 MiB, coloured by folio order, as an indexed PNG.

A cell shows what most of its pages are. How far it is filled shows how many of its pages are there; the
pattern tells private anonymous memory, memory shared with others, files and swap apart, without colour.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from replay.report.inspect import classified
from replay.trace.frame import Trace

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

CELL_BYTES: Final = 2 << 20
ACROSS: Final = 64
"""Cells in a row."""
PIXELS: Final = 8
"""Width and height of a cell, its border of one pixel included."""
MAX_CELLS: Final = 48_000
"""The largest number of cells that are drawn (94 GiB of mapped memory), so that the page stays small."""
GAP: Final = 4
"""A longer row of empty cells is left out, and one mark is drawn for it."""

PRIVATE, SHARED, FILE, SWAP, OTHER = range(5)
PATTERNS: Final = {
    PRIVATE: "private anonymous memory: filled",
    SHARED: "shared with other processes or shmem: checked",
    FILE: "files: striped",
    SWAP: "swapped out: a frame",
    OTHER: "zero pages and device memory: dotted",
}
"""What the pattern of a cell says."""

COLOURS: Final = (
    *("#8a93a0", "#6a4aa3", "#46599f", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#a8c820"),
    "#e0a100",
)
"""Of folio orders 0 to 9 and above: grey for single pages, then lighter as folios grow (after viridis)."""
EMPTY_COLOUR: Final = "#b8bec8"
"""The colour of a gap."""


@dataclasses.dataclass(frozen=True)
class Region:
    """Cells side by side in one row that hold the same VMAs: place in cells, and what they are."""

    x: int
    y: int
    cells: int
    text: str


@dataclasses.dataclass(frozen=True)
class Map:
    """A picture of `width` by `height` pixels, what lies where in it, and the table behind it.

    table: columns `what order cells pages`. left_out: cells for which there was no room.
    """

    png: bytes
    width: int
    height: int
    regions: list[Region]
    table: pl.DataFrame
    left_out: int


def draw(trace: Trace, mm: int) -> Map:
    """The map of one address space."""
    page_size = trace.meta.page_size
    cells, names = _cells(trace, mm, CELL_BYTES // page_size)
    numbers = cells["cell"].to_numpy()
    place, gaps = _places(numbers)
    kept = place < MAX_CELLS
    image = _painted(cells.filter(pl.Series(kept)), place[kept], gaps[gaps < MAX_CELLS])
    table = cells.group_by("what", "order").agg(pl.len().alias("cells"), pl.col("pages").sum())
    palette = ["#ffffff", *COLOURS, EMPTY_COLOUR]
    return Map(
        _png(image, palette),
        image.shape[1],
        image.shape[0],
        _regions(cells.filter(pl.Series(kept)), place[kept], names),
        table.sort("what", "order"),
        int((~kept).sum()),
    )


def _cells(trace: Trace, mm: int, pages: int) -> tuple[pl.DataFrame, dict[int, str]]:
    """Columns `cell what order pages` of an address space, and what to say of each cell.

    what, order: of most of its pages; pages: that are there.
    """
    kind = pl.col("kind").cast(pl.String)
    rows = classified(trace).filter(pl.col("mm") == mm)
    what = (
        pl.when(kind == "swap")
        .then(SWAP)
        .when(kind == "special")
        .then(OTHER)
        .when(pl.col("type") == "file")
        .then(FILE)
        .when((pl.col("type").is_in(["shmem", "hugetlb"])) | (pl.col("mapcount") > pl.col("own")))
        .then(SHARED)
        .otherwise(PRIVATE)
    )
    # extents end with their page-table page, which covers a cell or more; huge pages of hugetlb may be larger
    first = pl.col("vpn") // pages
    last = (pl.col("vpn") + pl.col("pages").cast(pl.Int64) - 1) // pages
    rows = rows.select(
        "vpn",
        "order",
        what.alias("what"),
        (pl.col("vpn") + pl.col("pages").cast(pl.Int64)).alias("end"),
        pl.col("vma_name").cast(pl.String).alias("name"),
        pl.int_ranges(first, last + 1).alias("cell"),
    ).explode("cell")
    begin, end = pl.col("cell") * pages, (pl.col("cell") + 1) * pages
    rows = rows.with_columns(
        pages=pl.min_horizontal("end", end) - pl.max_horizontal("vpn", begin),
    )
    shares = rows.group_by("cell", "what", "order").agg(pl.col("pages").sum()).sort("cell", "pages")
    most = shares.group_by("cell", maintain_order=True).agg(
        pl.col("what", "order").last(), pl.col("pages").sum()
    )
    said = (
        rows.group_by("cell", "name", maintain_order=True)
        .agg(pl.col("pages").sum())
        .sort("pages", descending=True, maintain_order=True)
        .group_by("cell")
        .agg(
            pl.when(pl.col("name") == "")
            .then(pl.lit("anonymous memory"))
            .otherwise(pl.col("name"))
            .head(4)
            .str.join(", ")
        )
    )
    return most.sort("cell"), dict(said.iter_rows())


def _places(numbers: I64) -> tuple[I64, I64]:
    """Where each cell is drawn, and where a mark stands for a longer gap."""
    if len(numbers) == 0:
        return numbers, numbers
    steps = np.diff(numbers, prepend=numbers[:1] - 1)
    steps = np.where(steps - 1 > GAP, 2, steps)
    place = np.cumsum(steps) - 1
    gaps = place[np.diff(numbers, prepend=numbers[:1]) - 1 > GAP] - 1
    return place, gaps


def _painted(cells: pl.DataFrame, place: I64, gaps: I64) -> U8:
    """Indices of the palette for each pixel: 0 is clear, 1 + order is a cell, the last one is a gap."""
    last = int(max([*place[-1:], *gaps[-1:], 0]))
    down = last // ACROSS + 1
    inner = PIXELS - 1
    y, x = np.mgrid[0:inner, 0:inner]
    patterns = np.stack(
        [
            np.ones((inner, inner), bool),
            (x + y) % 2 == 0,
            y % 2 == 0,
            (x == 0) | (y == 0) | (x == inner - 1) | (y == inner - 1),
            (x % 3 == 1) & (y % 3 == 1),
        ]
    )
    what = cells["what"].to_numpy()
    order = np.minimum(cells["order"].cast(pl.Int64).to_numpy(), len(COLOURS) - 1)
    most = max(int(cells["pages"].max() or 1), 1)  # type: ignore[arg-type]
    filled = np.ceil(cells["pages"].to_numpy() / most * inner).astype(np.int64).clip(1, inner)
    shown = patterns[what] & (y[None] >= inner - filled[:, None, None])
    image = np.zeros((down, ACROSS, PIXELS, PIXELS), np.uint8)
    image[place // ACROSS, place % ACROSS, :inner, :inner] = np.where(
        shown, (order + 1)[:, None, None], 0
    ).astype(np.uint8)
    mark = np.where((y == inner // 2) & (x % 2 == 0), len(COLOURS) + 1, 0).astype(np.uint8)
    image[gaps // ACROSS, gaps % ACROSS, :inner, :inner] = mark
    return image.transpose(0, 2, 1, 3).reshape(down * PIXELS, ACROSS * PIXELS)


def _regions(cells: pl.DataFrame, place: I64, names: dict[int, str]) -> list[Region]:
    """Neighbours of the same VMAs together."""
    regions: list[Region] = []
    for cell, where in zip(cells["cell"], place.tolist(), strict=True):
        y, x = divmod(where, ACROSS)
        text = names[cell]
        last = regions[-1] if regions else None
        if last and last.text == text and last.y == y and last.x + last.cells == x:
            regions[-1] = dataclasses.replace(last, cells=last.cells + 1)
        else:
            regions.append(Region(x, y, 1, text))
    return regions


def _png(image: U8, palette: list[str]) -> bytes:
    """An indexed PNG (RFC 2083); index 0 is clear."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = image.shape
    lines = np.zeros((height, width + 1), np.uint8)
    lines[:, 1:] = image
    colours = b"".join(bytes.fromhex(colour[1:]) for colour in palette)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        + chunk(b"PLTE", colours)
        + chunk(b"tRNS", b"\0")
        + chunk(b"IDAT", zlib.compress(lines.tobytes(), 9))
        + chunk(b"IEND", b"")
    )
