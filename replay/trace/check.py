# SPDX-License-Identifier: Apache-2.0
"""What a trace may say: checked on reading, before anything is computed or allocated from its numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import polars as pl

from replay.errors import TraceError
from replay.trace.kpageflags import FOLIO_FLAGS, KPF_HUGE, bit
from replay.trace.metadata import Metadata
from replay.trace.schema import (
    KINDS,
    MAX_FOLIO_BYTES,
    MAX_ORDER,
    MAX_PAGE_NUMBER,
    PERMISSIONS,
    VMA_FLAGS,
    ptes_per_table,
)

I64 = npt.NDArray[np.int64]


def check_frame(frame: pl.DataFrame, meta: Metadata, where: str) -> None:
    """Raise `TraceError` for the first impossible value; the message names the row.

    Checked: rows in order; process and name of each address space, as in the metadata; known kinds,
    permissions and flags of VMAs; nothing mapped by swap entries, markers and special entries; places and
    sizes in range; every extent inside its VMA, its page-table page and its folio; address spaces and
    addresses in order, without overlap; every PMD mapping and huge page whole; no more own mappings than
    mappings; one description of each folio, one mapcount of each page, and no folio inside another; `own` is
    the number of times the address space maps the page; a folio's totals cover its extents, and the rest can
    be.
    """
    check_metadata(meta, where)
    if frame.is_empty():
        return
    _check_order(frame, where)
    _check_owners(frame, meta, where)
    _check_texts(frame, where)
    rules = _rules(meta)
    size = pl.lit(1, pl.Int64) * 2 ** pl.col("order").clip(0, MAX_ORDER).cast(pl.Int64)
    prepared = frame.lazy().with_columns(
        kind=pl.col("kind").cast(pl.String),
        size=size.cast(pl.Int64),
        last=pl.col("vpn") + pl.col("pages") - 1,
    )
    prepared = prepared.with_columns(
        mapped=pl.col("kind").is_in(MAPPED), same=pl.col("mm") == pl.col("mm").shift(1)
    )
    first = prepared.select(
        wrong.fill_null(False).arg_true().first().alias(what) for what, wrong in rules.items()
    ).collect()
    for what, row in first.row(0, named=True).items():
        if row is not None:
            raise TraceError(f"{where}: row {row}: {what}: the trace is damaged, capture it again")
    _check_modelled(frame, where)
    for rows in _mapped(frame):
        _check_folios(rows, where)
        _check_own(rows, where, is_part=bool(meta.part))
        _check_repeated(rows, where)


def check_metadata(meta: Metadata, where: str) -> None:
    """Raise `TraceError` for a page size that the architecture cannot have."""
    if meta.page_size not in (1 << shift for shift in range(12, 17)):
        raise TraceError(f"{where}: page size {meta.page_size}: expected 4096 to 65536 bytes, a power of two")
    if meta.architecture in ONLY_4K and meta.page_size != 4096:
        raise TraceError(
            f"{where}: page size {meta.page_size}: {meta.architecture} has pages of 4096 bytes only"
        )


def _check_order(frame: pl.DataFrame, where: str) -> None:
    """Rows go by address space, then by address."""
    mm, vpn = pl.col("mm"), pl.col("vpn")
    before = (mm < mm.shift(1)) | ((mm == mm.shift(1)) & (vpn < vpn.shift(1)))
    row = frame.select(before.fill_null(False).arg_true().first()).item()
    if row is not None:
        raise TraceError(f"{where}: row {row}: rows are out of order: sort them by mm and vpn")


def _check_owners(frame: pl.DataFrame, meta: Metadata, where: str) -> None:
    """Every row names the process, and the command, that the metadata name for its address space."""
    owner = [pl.col(name) for name in ("mm", "pid", "comm")]
    begins = pl.any_horizontal(column != column.shift(1) for column in owner).fill_null(True)
    firsts = (
        frame.with_row_index("row").filter(begins).select("row", "mm", "pid", pl.col("comm").cast(pl.String))
    )
    for row, mm, pid, comm in firsts.iter_rows():
        if mm >= len(meta.address_spaces):
            raise TraceError(
                f"{where}: row {row}: mm has no address space in the metadata: the trace is damaged, "
                "capture it again"
            )
        space = meta.address_spaces[mm]
        if (pid, comm) != (space.pid, space.comm):
            raise TraceError(
                f"{where}: row {row}: the row is of {comm} ({pid}), but address space {mm} is that of "
                f"{space.comm} ({space.pid}): the trace is damaged, capture it again"
            )


def _check_texts(frame: pl.DataFrame, where: str) -> None:
    """Permissions and flags of VMAs are what the kernel writes."""
    for name, is_one in (
        ("vma_perms", lambda values: values.is_in(PERMISSIONS)),
        ("vma_flags", lambda values: values.str.contains(VMA_FLAGS)),
    ):
        # few, repeated on many rows
        values = frame[name].unique().cast(pl.String)
        wrong = values.filter(~is_one(values))
        if len(wrong):
            row = frame.select((pl.col(name) == wrong[0]).arg_true().first()).item()
            raise TraceError(
                f"{where}: row {row}: {name} {wrong[0]!r} are none of the kernel's: the trace is damaged, "
                "capture it again"
            )


def _check_modelled(frame: pl.DataFrame, where: str) -> None:
    """Refuse what the replay would count on other folios: huge mappings of what is no large folio."""
    huge = frame["kind"].cast(pl.String).is_in(["pmd", "hugetlb"]) & (frame["order"] == 0)
    row = huge.arg_max() if huge.any() else None
    if row is not None:
        comm, pid = frame["comm"].cast(pl.String)[row], frame["pid"][row]
        raise TraceError(
            f"{where}: row {row}: a huge mapping of order 0, of zone-device memory or a folio that changed "
            f"while it was read, is not modelled: capture without process {pid} ({comm}), or again"
        )


ONLY_4K = ("x86_64", "i686", "s390x")

MAPPED = KINDS[:3]
ABSENT = ("swap", "marker")

TOTALS = ("folio_mapped", "folio_mapcount")


def _rules(meta: Metadata) -> dict[str, pl.Expr]:
    """What no row may say: message -> where it holds. Columns of the trace, and those of `check_frame`."""
    kinds = KINDS if meta.format_version > 1 else KINDS[: KINDS.index("marker")]
    entries = ptes_per_table(meta.page_size)
    largest = (MAX_FOLIO_BYTES // meta.page_size).bit_length() - 1
    col = pl.col
    mapped, same, size = col("mapped"), col("same"), col("size")
    large = mapped & (col("order") > 0)
    # the huge zero page, and frames that a driver maps
    in_folio = (large | (col("kind") == "special")) & (col("order") > 0)
    start, end = col("vma_start"), col("vma_start") + col("vma_pages")
    sane = (start < MAX_PAGE_NUMBER) & (col("vma_pages") < MAX_PAGE_NUMBER)
    vpn, last = (col(name).cast(pl.UInt64, strict=False) for name in ("vpn", "last"))
    inside = sane & (vpn >= start) & (last < end)
    beyond_folio = (col("pfn") < col("folio")) | (col("pfn") + col("pages") > col("folio") + size)
    same_vma = same & (col("vma") == col("vma").shift(1))
    moved = (start != start.shift(1)) | (col("vma_pages") != col("vma_pages").shift(1))
    renamed = pl.any_horizontal(
        col(name) != col(name).shift(1) for name in ("vma_perms", "vma_flags", "vma_name")
    )
    absent = col("kind").is_in(ABSENT)
    beside = pl.any_horizontal(
        col(name) != 0
        for name in ("kpageflags", "mapcount", "own", "order", "folio_mapped", "folio_mapcount", "memcg")
    )
    pmd, hugetlb = (large & (col("kind") == kind) for kind in ("pmd", "hugetlb"))
    begins = (pmd & (col("vpn") % entries == 0)) | (hugetlb & (col("pfn") == col("folio")))
    ends = (pmd & ((col("last") + 1) % entries == 0)) | (
        hugetlb & (col("pfn") + col("pages") == col("folio") + size)
    )
    goes_on = same_vma & ~begins & (col("vpn") == col("last").shift(1) + 1)
    goes_on &= col("pfn") == (col("pfn") + col("pages")).shift(1)
    for name in ("kind", "folio", "order"):
        goes_on &= col(name) == col(name).shift(1)
    is_huge_flag = col("kpageflags") & bit(KPF_HUGE) != 0
    return {
        "kind is none of " + ", ".join(kinds): ~col("kind").is_in(kinds),
        **{
            f"{name} is out of range": ~col(name).is_between(0, MAX_PAGE_NUMBER)
            for name in ("vpn", "pfn", "folio")
        },
        "the extent has no pages": col("pages") == 0,
        f"order is above {largest}": col("order") > largest,
        "the extent lies beyond its VMA": ~inside,
        "the extent lies beyond its page-table page": (col("kind") != "hugetlb")
        & (col("vpn") // entries != col("last") // entries),
        "the extent lies beyond its folio": in_folio & beyond_folio,
        "the folio is not aligned": in_folio & (col("folio") % size != 0),
        "a PMD maps a folio that is smaller than what it maps": pmd & (size < entries),
        "the frames of a PMD mapping are not aligned": pmd & begins & (col("pfn") % entries != 0),
        "a huge mapping lacks its first pages": (pmd | hugetlb) & ~begins & ~goes_on.fill_null(False),
        "a huge mapping lacks its last pages": (pmd | hugetlb) & ~ends & ~goes_on.shift(-1).fill_null(False),
        "a page of hugetlb is mapped by other than a huge mapping": mapped
        & is_huge_flag
        & (col("kind") != "hugetlb"),
        "own is 0 though the page is mapped": mapped & (col("own") == 0),
        "own is above mapcount": mapped & (col("own") > col("mapcount")),
        "folio_mapped is above the folio's size": mapped & (col("folio_mapped") > size),
        "folio_mapped is 0 though a page is mapped": mapped & (col("folio_mapped") == 0),
        "the totals of an order-0 page are not its own": mapped
        & (col("order") == 0)
        & ((col("folio_mapped") != 1) | (col("folio_mapcount") != col("mapcount"))),
        "folio_mapcount is below folio_mapped": mapped & (col("folio_mapcount") < col("folio_mapped")),
        "folio_mapcount does not cover the extent's mapcount": mapped
        & ((col("folio_mapcount") < col("mapcount")) | (col("folio_mapcount") >= MAX_PAGE_NUMBER)),
        "an order-0 page is in a folio that begins elsewhere": mapped
        & (col("order") == 0)
        & (col("folio") != col("pfn")),
        "a swap entry or marker says something of a folio": absent & beside,
        "a marker has a place in swap": (col("kind") == "marker") & (col("pfn") != 0),
        "a special entry counts mappings": (col("kind") == "special")
        & ((col("mapcount") | col("own") | col("folio_mapped") | col("folio_mapcount")) != 0),
        "what is not mapped is dirty": ~mapped & col("dirty"),
        "the extent overlaps the one before it": same & (col("vpn") <= col("last").shift(1)),
        "VMAs are not in order": same & (col("vma") < col("vma").shift(1)),
        "the VMA has another place than in the row before": same_vma & moved,
        "the VMA has other permissions, flags or another name than in the row before": same_vma & renamed,
        "the VMA overlaps the one before it": same & ~same_vma & (start < end.shift(1)),
    }


def _mapped(frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """The rows of mapped pages, with their number `row`, type `flags` and the key `space`.

    frame + space tells the frames of address spaces apart; they come in parts for which 63 bits do.
    """
    mapped = (
        frame.select(
            "mm",
            "pfn",
            "pages",
            "own",
            "mapcount",
            "folio",
            "order",
            "folio_mapped",
            "folio_mapcount",
            "kind",
            flags=pl.col("kpageflags") & FOLIO_FLAGS,
            size=2 ** pl.col("order").cast(pl.Int64),
        )
        .with_row_index("row")
        .filter(pl.col("kind").cast(pl.String).is_in(MAPPED))
        .drop("kind")
    )
    if mapped.is_empty():
        return
    ends = mapped.select((pl.col("pfn") + pl.col("pages")).max(), (pl.col("folio") + pl.col("size")).max())
    room = max(ends.row(0))
    together = (1 << 62) // room
    part = pl.col("mm").cast(pl.Int64) // together
    space = pl.col("mm").cast(pl.Int64) % together * room
    for _, rows in mapped.with_columns(part=part, space=space).group_by("part", maintain_order=True):
        yield rows


def _check_folios(rows: pl.DataFrame, where: str) -> None:
    """One size, type and pair of totals for each large folio; no page in two folios."""
    large = rows.filter(pl.col("order") > 0)
    if large.is_empty():
        return
    facts = large.unique(["mm", "folio", "order", "folio_mapped", "folio_mapcount", "flags"])
    _check_totals(large, where)
    twice = facts.filter(pl.struct("mm", "folio").is_duplicated())
    if not twice.is_empty():
        mm, head = twice.select("mm", "folio").sort("mm", "folio").row(0)
        raise TraceError(
            f"{where}: address space {mm}: folio {head} is described in two ways: capture it again"
        )
    small = rows.filter(pl.col("order") == 0).select("row", "pfn", "space", folio="pfn", size="pages")
    folios = pl.concat(
        [facts.select("row", "folio", "space", "size", pfn="folio"), small], how="diagonal_relaxed"
    )
    heads = facts.select("folio", "size", head=pl.col("folio") + pl.col("space")).sort("head")
    starts, ends = (
        folios.select(pl.col("folio") + pl.col("space") + more)["folio"].to_numpy()
        for more in (0, pl.col("size"))
    )
    # a page range clashes with a large folio if the last folio that begins before the range's end
    # is another one and reaches into it
    head, size = heads["head"].to_numpy(), heads["size"].to_numpy()
    place = np.searchsorted(head, ends, side="left") - 1
    other = (place >= 0) & (head[place] != starts) & (head[place] + size[place] > starts)
    if other.any():
        first = int(np.flatnonzero(other)[0])
        raise TraceError(
            f"{where}: row {folios['row'][first]}: pfn {folios['pfn'][first]} lies in folio "
            f"{heads['folio'][int(place[first])]} too: capture it again"
        )


def _check_totals(large: pl.DataFrame, where: str) -> None:
    """A folio's totals cover the pages that the extents show, and can be."""
    # a page that is mapped several times is in several rows
    once = large.filter(pl.col("own") == 1).select("mm", "folio", "pages", "mapcount", "row", *TOTALS)
    again = (
        large.filter(pl.col("own") > 1)
        .with_columns(frame=pl.int_ranges(pl.col("pfn"), pl.col("pfn") + pl.col("pages"), dtype=pl.Int64))
        .explode("frame")
        .unique(["mm", "frame"], keep="first", maintain_order=True)
        .select("mm", "folio", pl.lit(1, pl.UInt32).alias("pages"), "mapcount", "row", *TOTALS)
    )
    pages = pl.col("pages").cast(pl.Int64)
    shown = (
        pl.concat([once, again])
        .group_by("mm", "folio")
        .agg(
            pages.sum().alias("mapped"),
            (pages * pl.col("mapcount").cast(pl.Int64)).sum().alias("mapcount"),
            pl.col("row").min(),
            *(pl.col(name).cast(pl.Int64).first() for name in TOTALS),
        )
    )
    # each further page that is mapped has a mapcount of at least 1, and what is left is theirs
    pages, mapcount = pl.col("folio_mapped") - pl.col("mapped"), pl.col("folio_mapcount") - pl.col("mapcount")
    for wrong, what in (
        ((pages < 0) | (mapcount < 0), "more pages of folio {} are mapped than its totals say"),
        ((mapcount < pages) | ((pages == 0) & (mapcount > 0)), "the totals of folio {} do not fit its pages"),
    ):
        found = shown.filter(wrong).sort("row")
        if not found.is_empty():
            row, folio = found.select("row", "folio").row(0)
            raise TraceError(
                f"{where}: row {row}: {what.format(folio)}: the trace is damaged, capture it again"
            )


def _check_own(rows: pl.DataFrame, where: str, is_part: bool) -> None:
    """`own` is the number of times the address space maps the page; in a part, others may not be there."""
    pages, own = (rows[name].cast(pl.Int64).to_numpy() for name in ("pages", "own"))
    pfn = rows.select(pl.col("pfn") + pl.col("space"))["pfn"].to_numpy()
    found = own_mappings(pfn, pages, own)
    wrong = np.flatnonzero((found > own) if is_part else (found >= 0))
    if len(wrong):
        row, mm = rows.select("row", "mm").row(int(wrong[0]))
        raise TraceError(
            f"{where}: row {row}: own is {own[wrong[0]]}, but address space {mm} maps these pages another "
            "number of times: the trace is damaged, capture it again"
        )


def _check_repeated(rows: pl.DataFrame, where: str) -> None:
    """Pages that are mapped several times have one mapcount, one `own`, one folio and one type."""
    repeated = rows.filter(pl.col("own") > 1)
    pages = repeated.select(
        "row",
        "mm",
        "mapcount",
        "own",
        "order",
        "flags",
        frame=pl.int_ranges(pl.col("pfn"), pl.col("pfn") + pl.col("pages"), dtype=pl.Int64),
    ).explode("frame")
    alike = [pl.col(name).n_unique() == 1 for name in ("mapcount", "own", "order", "flags")]
    ways = pages.group_by("mm", "frame").agg(pl.col("row").last(), alike=pl.all_horizontal(alike))
    wrong = ways.filter(~pl.col("alike")).sort("row")
    if not wrong.is_empty():
        row, mm = wrong.select("row", "mm").row(0)
        raise TraceError(
            f"{where}: row {row}: address space {mm} maps these pages elsewhere too, and there they are "
            "described in another way: capture it again"
        )


def own_mappings(pfn: I64, pages: I64, own: I64) -> I64:
    """For each extent -1 if all its pages are mapped by exactly `own` extents, else by how many a page is.

    pfn, pages, own: int64, shape (n,), extents of one address space.
    """
    result = np.full(len(pfn), -1, np.int64)
    order = np.argsort(pfn, kind="stable")
    starts, ends = pfn[order], (pfn + pages)[order]
    reach = np.maximum.accumulate(ends)
    alone = np.ones(len(pfn), np.bool_)
    alone[1:] &= starts[1:] >= reach[:-1]
    alone[:-1] &= alone[1:]
    result[order[alone]] = np.where(own[order[alone]] == 1, -1, 1)
    together = order[~alone]
    if len(together):
        begin, end, times = pfn[together], (pfn + pages)[together], own[together]
        bounds = np.unique(np.concatenate([begin, end]))
        first, last = np.searchsorted(bounds, begin), np.searchsorted(bounds, end)
        change = np.bincount(first, minlength=len(bounds)) - np.bincount(last, minlength=len(bounds))
        # of the pieces between two bounds, those of an extent are first to last - 1
        covers = np.cumsum(change)
        pieces = np.column_stack([first, last]).ravel()
        least, most = (reduce.reduceat(covers, pieces)[::2] for reduce in (np.minimum, np.maximum))
        result[together] = np.where(least != times, least, np.where(most != times, most, -1))
    return result
