"""What a trace may say: checked on reading, before anything is computed or allocated from its numbers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from replay.errors import TraceError
from replay.trace.file import Metadata
from replay.trace.schema import KINDS, MAX_FOLIO_BYTES, ptes_per_table

I64 = npt.NDArray[np.int64]

MAX_PAGE_NUMBER = 1 << 52
"""Page numbers, counts and swap offsets are below this on every 64-bit architecture."""


def check_frame(frame: pl.DataFrame, meta: Metadata, where: str) -> None:
    """Raise `TraceError` for the first impossible value; the message names the row.

    Checked: known kinds; places and sizes in range; every extent inside its VMA, its page-table page
    and its folio; address spaces and addresses in order, without overlap; no more own mappings than
    mappings; one size for each folio and no folio inside another; `own` is the number of times the
    address space maps the page.
    """
    if meta.page_size not in (1 << shift for shift in range(12, 17)):
        raise TraceError(f"{where}: page size {meta.page_size}: expected 4096 to 65536 bytes, a power of two")
    if frame.is_empty():
        return
    _refuse(frame, ~pl.col("kind").cast(pl.String).is_in(KINDS), "kind is none of " + ", ".join(KINDS), where)
    _refuse(frame, pl.col("mm") >= len(meta.address_spaces), "mm has no address space in the metadata", where)
    for name in ("vpn", "pfn", "folio"):
        _refuse(frame, ~pl.col(name).is_between(0, MAX_PAGE_NUMBER), f"{name} is out of range", where)
    _refuse(frame, pl.col("pages") == 0, "the extent has no pages", where)
    largest = (MAX_FOLIO_BYTES // meta.page_size).bit_length() - 1
    _refuse(frame, pl.col("order") > largest, f"order is above {largest}", where)
    _refuse(frame, *_beyond_vma(), where)
    _refuse(frame, *_beyond_table(meta.page_size), where)
    mapped = pl.col("kind").cast(pl.String).is_in(KINDS[:3])
    size = pl.lit(1, pl.Int64).mul(2 ** pl.col("order").cast(pl.Int64)).cast(pl.Int64)
    outside = (pl.col("pfn") < pl.col("folio")) | (pl.col("pfn") + pl.col("pages") > pl.col("folio") + size)
    _refuse(frame, mapped & (pl.col("order") > 0) & outside, "the extent lies beyond its folio", where)
    _refuse(
        frame,
        mapped & (pl.col("folio") % size != 0) & (pl.col("order") > 0),
        "the folio is not aligned",
        where,
    )
    _refuse(frame, mapped & (pl.col("own") == 0), "own is 0 though the page is mapped", where)
    _refuse(frame, mapped & (pl.col("own") > pl.col("mapcount")), "own is above mapcount", where)
    _refuse(frame, mapped & (pl.col("folio_mapped") > size), "folio_mapped is above the folio's size", where)
    _refuse(frame, mapped & (pl.col("folio_mapped") == 0), "folio_mapped is 0 though a page is mapped", where)
    _refuse(
        frame,
        mapped
        & ((pl.col("folio_mapcount") < pl.col("mapcount")) | (pl.col("folio_mapcount") >= MAX_PAGE_NUMBER)),
        "folio_mapcount does not cover the extent's mapcount",
        where,
    )
    _check_order(frame, where)
    for mm, rows in _mapped_by_mm(frame):
        _check_folios(mm, rows, where)
        _check_own(mm, rows, where)


def _refuse(frame: pl.DataFrame, wrong: pl.Expr, what: str, where: str) -> None:
    rows = frame.select(wrong.arg_true().first()).item()
    if rows is not None:
        raise TraceError(f"{where}: row {rows}: {what}: the trace is damaged, capture it again")


def _beyond_vma() -> tuple[pl.Expr, str]:
    start, pages = pl.col("vma_start"), pl.col("vma_pages")
    end = pl.col("vpn").cast(pl.UInt64) + pl.col("pages")
    sane = (start < MAX_PAGE_NUMBER) & (pages < MAX_PAGE_NUMBER)
    inside = sane & (pl.col("vpn").cast(pl.UInt64) >= start) & (end <= start + pages)
    return ~inside, "the extent lies beyond its VMA"


def _beyond_table(page_size: int) -> tuple[pl.Expr, str]:
    entries = ptes_per_table(page_size)
    last = pl.col("vpn") + pl.col("pages") - 1
    in_table = pl.col("kind").cast(pl.String) != "hugetlb"
    return in_table & (
        pl.col("vpn") // entries != last // entries
    ), "the extent lies beyond its page-table page"


def _check_order(frame: pl.DataFrame, where: str) -> None:
    mm, vma, vpn = pl.col("mm"), pl.col("vma"), pl.col("vpn")
    same = mm == mm.shift(1)
    _refuse(frame, (mm < mm.shift(1)).fill_null(False), "address spaces are not in order", where)
    overlap = same & (vpn < vpn.shift(1) + pl.col("pages").shift(1))
    _refuse(
        frame, overlap.fill_null(False), "the extent overlaps the one before it, or is out of order", where
    )
    _refuse(frame, (same & (vma < vma.shift(1))).fill_null(False), "VMAs are not in order", where)
    start = pl.col("vma_start")
    changed = (
        same
        & (vma == vma.shift(1))
        & ((start != start.shift(1)) | (pl.col("vma_pages") != pl.col("vma_pages").shift(1)))
    )
    _refuse(frame, changed.fill_null(False), "the VMA has another place than in the row before", where)
    inside = same & (vma != vma.shift(1)) & (start < start.shift(1) + pl.col("vma_pages").shift(1))
    _refuse(frame, inside.fill_null(False), "the VMA overlaps the one before it", where)


def _mapped_by_mm(frame: pl.DataFrame) -> list[tuple[int, pl.DataFrame]]:
    mapped = (
        frame.select("mm", "kind", "pfn", "pages", "own", "folio", "order", "folio_mapped", "folio_mapcount")
        .with_row_index("row")
        .filter(pl.col("kind").cast(pl.String).is_in(KINDS[:3]))
    )
    return [(int(key[0]), rows) for key, rows in mapped.group_by("mm", maintain_order=True)]


def _check_folios(mm: int, rows: pl.DataFrame, where: str) -> None:
    """One size and one pair of totals for each large folio; no page in two folios."""
    large = rows.filter(pl.col("order") > 0)
    facts = large.unique(["folio", "order", "folio_mapped", "folio_mapcount"])
    heads = facts["folio"].sort()
    if heads.n_unique() != len(heads):
        head = heads.filter(heads.is_duplicated())[0]
        raise TraceError(
            f"{where}: address space {mm}: folio {head} is described in two ways: capture it again"
        )
    folios = pl.concat(
        [
            facts.select("folio", end=pl.col("folio") + 2 ** pl.col("order").cast(pl.Int64)),
            rows.filter(pl.col("order") == 0).select(folio="pfn", end=pl.col("pfn") + pl.col("pages")),
        ]
    )
    large_only = np.sort(facts["folio"].to_numpy())
    if not len(large_only):
        return
    ends = (
        facts.sort("folio")
        .select(end=pl.col("folio") + 2 ** pl.col("order").cast(pl.Int64))["end"]
        .to_numpy()
    )
    starts = folios["folio"].to_numpy()
    stops = folios["end"].to_numpy()
    # a page range clashes with a large folio if the last folio that begins before the range's end
    # is another one and reaches into it
    place = np.searchsorted(large_only, stops, side="left") - 1
    other = (place >= 0) & (large_only[place] != starts) & (ends[place] > starts)
    if other.any():
        first = int(np.flatnonzero(other)[0])
        raise TraceError(
            f"{where}: address space {mm}: pfn {starts[first]} lies in folio {large_only[place[first]]} too: "
            "capture it again"
        )


def _check_own(mm: int, rows: pl.DataFrame, where: str) -> None:
    pfn, pages, own = (rows[name].cast(pl.Int64).to_numpy() for name in ("pfn", "pages", "own"))
    wrong = np.flatnonzero(own_mappings(pfn, pages, own) >= 0)
    if len(wrong):
        row = rows["row"][int(wrong[0])]
        raise TraceError(
            f"{where}: row {row}: own is {own[wrong[0]]}, but address space {mm} maps these pages another "
            "number of times: the trace is damaged, capture it again"
        )


def own_mappings(pfn: I64, pages: I64, own: I64) -> I64:
    """For each extent -1 if all its pages are covered by exactly `own` extents, else a number that differs.

    pfn, pages, own: int64, shape (n,), extents of one address space.
    """
    starts, ends = np.sort(pfn), np.sort(pfn + pages)
    begun = np.searchsorted(starts, pfn, side="right")
    over = np.searchsorted(ends, pfn, side="right")
    cover = begun - over
    # inside the extent nothing may begin or end unless as much begins as ends there
    begun_last = np.searchsorted(starts, pfn + pages - 1, side="right")
    over_last = np.searchsorted(ends, pfn + pages - 1, side="right")
    right = (cover == own) & ((begun_last == begun) & (over_last == over))
    uneven = (cover == own) & ~right
    result = np.where(right, -1, cover)
    for index in np.flatnonzero(uneven):
        result[index] = _uneven_cover(starts, ends, int(pfn[index]), int(pages[index]), int(own[index]))
    return result


def _uneven_cover(starts: I64, ends: I64, pfn: int, pages: int, own: int) -> int:
    pfns = np.arange(pfn, pfn + pages)
    cover = np.searchsorted(starts, pfns, side="right") - np.searchsorted(ends, pfns, side="right")
    different = cover[cover != own]
    return int(different[0]) if len(different) else -1
