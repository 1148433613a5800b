# SPDX-License-Identifier: Apache-2.0
"""What-if: the same processes, had their memory come in folios of other sizes.

Two policies for private anonymous memory, each the rule of a path in the kernel:

`fault`: mm/memory.c, alloc_anon_folio() (v6.8, commit 19eaf44954df) and do_huge_pmd_anonymous_page(). All of
the memory comes anew. A naturally aligned block that fits its VMA and holds any page becomes one folio,
mapped in full; of several orders the largest that fits is taken first. What fits no block comes in single
pages. So order 0 alone splits large folios, and leaves order-0 memory as it is.

`collapse`: mm/khugepaged.c, hpage_collapse_scan_pmd(). Memory stays as it was captured, but for each aligned
block of PMD size that khugepaged would collapse: at most `max_ptes_none` of its entries are empty or map the
zero page, at most an eighth of them are swapped out (max_ptes_swap; if any is, half of the entries must be
pages in use), and no page is shared. The kernel also copies up to max_ptes_shared (half) pages that others
map: that changes the other processes, so such blocks stay here. Pages are taken for recently used: a trace
does not show the accessed bit of the entries.

Page cache (`page_cache`): the pages of a file lie in folios aligned in the file; which pages are mapped
stays. A trace has no file offsets: the first mapping of a file in an address space is taken to begin at
offset 0, and those behind it to lie as far apart in the file as in memory, as the loader of ELF files places
them; where a VMA maps large folios already, these show how it lies. (Of the pages of large folios in the
bundled captures, 99.8 % lie as the first rule says.)

What stays as it is: pages that others map too or that are mapped twice, of KSM or in the swap cache, folios
with such a page; VMAs that are mlocked, VM_NOHUGEPAGE, VM_PFNMAP, VM_MIXEDMAP, VM_IO, hugetlb or watched by
userfaultfd; copies of file pages (a private file mapping gets single pages only).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from replay.errors import TraceError, UsageError
from replay.trace import totals
from replay.trace.frame import SCHEMA, Trace
from replay.trace.kpageflags import (
    KPF_ANON,
    KPF_COMPOUND_HEAD,
    KPF_COMPOUND_TAIL,
    KPF_HUGE,
    KPF_KSM,
    KPF_LRU,
    KPF_SWAPBACKED,
    KPF_SWAPCACHE,
    KPF_THP,
    KPF_ZERO_PAGE,
    bit,
)
from replay.trace.schema import ptes_per_table

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


class Policy(StrEnum):
    """When memory comes in large folios."""

    FAULT = "fault"
    COLLAPSE = "collapse"


@dataclasses.dataclass(frozen=True)
class WhatIf:
    """A what-if and what it did; figures in pages.

    All address spaces together. `anonymous`: private anonymous pages; `pages`: those of them that may change;
    `taken`: those of them that came into the folios made. `added`: pages more in memory, which are the pages
    of the folios made less `taken`. `folios`: order -> folios made. `stays`: reason -> private anonymous
    pages that did not come into a folio of an order asked for.
    """

    trace: Trace
    anonymous: int
    pages: int
    taken: int
    added: int
    folios: dict[int, int]
    stays: dict[str, int]


STAYS: Final = {
    "shared": "mapped by others too, mapped twice, of KSM or in the swap cache",
    "locked": "in an mlocked VMA",
    "nohugepage": "in a VMA with VM_NOHUGEPAGE",
    "special": "in a VMA of a device, of hugetlb, or watched by userfaultfd",
    "file": "copies of file pages, which come one by one",
    "edge": "at the edges of VMAs, where no whole block fits",
    "mixed": "in a block with a page that stays or is swapped out",
    "sparse": "in a block that khugepaged passes over: too few pages, or too many swapped out",
    "mapped by a PMD": "in a huge page already",
}
"""Why pages stay: reason -> meaning."""

SPECIAL_FLAGS: Final = ("pf", "io", "mm", "de", "ht", "um", "uw", "ui")
"""VmFlags of smaps: VM_PFNMAP, VM_IO, VM_MIXEDMAP, VM_DONTEXPAND, VM_HUGETLB; userfaultfd modes."""

MIN_ORDER: Final = 2
"""Of large anonymous folios: THP_ORDERS_ALL_ANON leaves out order 1, which has no room for _deferred_list."""

SUFFIXES: Final = {"k": 10, "m": 20, "g": 30}


def pmd_order(page_size: int) -> int:
    """The order of a folio that one PMD entry maps, the largest of anonymous memory: 9 with 4 KiB pages."""
    return ptes_per_table(page_size).bit_length() - 1


def parse_orders(text: str, page_size: int) -> list[int]:
    """`0,3`, `64k` or `2m` -> orders, each once, from the smallest on.

    Raises `UsageError` for what is no order or size, or none that anonymous memory can have.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        missing = "no order is named" if words == [""] else f"'{text}' has an empty value between its commas"
        raise UsageError(f"{missing}: give orders (3) or sizes (32k), separated by commas")
    return sorted({_order(word, page_size) for word in words})


def _order(word: str, page_size: int) -> int:
    largest = pmd_order(page_size)
    match = re.fullmatch(r"(\d+)\s*(?:([kmg])i?b?)?", word.lower())
    if not match:
        raise UsageError(f"'{word}' is no folio size: give an order (3) or a size (32k)")
    number, suffix = int(match[1]), match[2]
    order = number
    if suffix:
        pages, rest = divmod(number << SUFFIXES[suffix], page_size)
        order = pages.bit_length() - 1
        if rest or pages <= 0 or 1 << order != pages:
            raise UsageError(f"'{word}' is no folio size: give {_sizes(page_size)}")
    if not (order == 0 or MIN_ORDER <= order <= largest):
        raise UsageError(
            f"anonymous memory has no folios of order {order} (base pages of {page_size >> 10} KiB): give "
            f"order 0 ({_size(0, page_size)}), or {MIN_ORDER} to {largest} ({_size(MIN_ORDER, page_size)} to "
            f"{_size(largest, page_size)})"
        )
    return order


def _size(order: int, page_size: int) -> str:
    kib = page_size << order >> 10
    return f"{kib >> 10}m" if kib % 1024 == 0 else f"{kib}k"


def _sizes(page_size: int) -> str:
    """The sizes that a folio of anonymous memory can have: `4k, 16k, 32k ... 2m`."""
    first = ", ".join(_size(order, page_size) for order in (0, MIN_ORDER, MIN_ORDER + 1))
    return f"{first} ... {_size(pmd_order(page_size), page_size)}"


def what_if(
    trace: Trace,
    orders: Sequence[int],
    *,
    policy: Policy = Policy.FAULT,
    max_ptes_none: int | None = None,
    by_ptes: bool = False,
    page_cache: bool = False,
) -> WhatIf:
    """The trace as if its private anonymous memory had come in folios of these orders.

    max_ptes_none: of `collapse`; by default the kernel's own, one less than the entries of a page-table page.
    by_ptes: folios of PMD size are mapped by PTEs, not by a PMD entry. page_cache: the page cache too comes
    in folios, of the largest of the orders. Folios made here have frames outside those of the trace.

    Raises `TraceError` for a trace that is a what-if already; `UsageError` for orders that do not go with the
    policy.
    """
    if trace.meta.what_if:
        raise TraceError(
            f"'{trace.name}' is a what-if already ({trace.meta.what_if}): start from the trace as captured"
        )
    largest = pmd_order(trace.meta.page_size)
    if max_ptes_none is None:
        max_ptes_none = (1 << largest) - 1
    if policy is Policy.COLLAPSE:
        if list(orders) != [largest]:
            raise UsageError(
                f"khugepaged makes folios of order {largest} here: give --order {largest}, or leave --order "
                "out"
            )
        if page_cache:
            raise UsageError("--file goes with the policy 'fault': khugepaged leaves most page cache alone")
        if not 0 <= max_ptes_none < 1 << largest:
            raise UsageError(f"--max-ptes-none is 0 to {(1 << largest) - 1}")
    said = _said(orders, policy, max_ptes_none, by_ptes, page_cache, trace.meta.page_size)
    rows = _classified(trace.frame)
    pages = _may_change(rows)
    anonymous = pages + int(rows.filter(pl.col("why") != "")["pages"].cast(pl.Int64).sum())
    if policy is Policy.FAULT:
        rows = _split(rows)
    frames = _Frames(_first_free_frame(trace.frame, largest))
    folios: dict[int, int] = {}
    stays: dict[str, int] = {}
    for order in sorted(set(orders) - {0}, reverse=True):
        limit = max_ptes_none if policy is Policy.COLLAPSE else None
        rows, folios[order], stays = _rewritten(rows, order, largest, limit, by_ptes, frames)
    if policy is Policy.COLLAPSE:
        rows = _remainders(rows)
    taken = pages - _may_change(rows)
    frame = rows.drop("class", "why")
    if page_cache and max(orders, default=0) > 0:
        frame = _page_cache(frame, max(orders), frames)
    elif page_cache:
        frame = _split_page_cache(frame)
    frame = frame.select(list(SCHEMA)).cast(SCHEMA)  # type: ignore[arg-type]
    spaces, added = _resident(trace, frame)
    meta = dataclasses.replace(trace.meta, what_if=said, address_spaces=spaces)
    changed = dataclasses.replace(trace, frame=frame, meta=meta)
    return WhatIf(changed, anonymous, pages, taken, added, folios, stays)


def _said(
    orders: Sequence[int], policy: Policy, max_ptes_none: int, by_ptes: bool, page_cache: bool, page_size: int
) -> str:
    """What `Metadata.what_if` says."""
    named = ", ".join(f"{order} ({_size(order, page_size)})" for order in orders)
    words = [f"folios of order {named}", f"policy {policy}"]
    if policy is Policy.COLLAPSE:
        words.append(f"max_ptes_none {max_ptes_none}")
    if by_ptes:
        words.append("mapped by PTEs")
    if page_cache:
        words.append("page cache too")
    return ", ".join(words)


# ------------------------------------------------------------------ which rows may change

OTHER, ZERO, SWAPPED, GOOD, GOOD_PMD = range(5)
"""Classes of rows: stays; zero page; swap entry; private anonymous pages, by PTEs and by a PMD entry."""


def _classified(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with `class`, and with `why` it stays for anonymous pages that do (a key of `STAYS`)."""
    kind, name = pl.col("kind").cast(pl.String), pl.col("vma_name").cast(pl.String)
    flags, words = pl.col("kpageflags"), pl.col("vma_flags").cast(pl.String).str.split(" ")
    anon = kind.is_in(["page", "pmd"]) & (flags & bit(KPF_ANON) != 0) & (flags & bit(KPF_HUGE) == 0)
    alone = (pl.col("mapcount") == 1) & (pl.col("own") == 1)
    alone &= flags & (bit(KPF_KSM) | bit(KPF_SWAPCACHE)) == 0
    # the rest of a large folio must be ours alone as well: all its mappings are those that the rows show
    ours = pl.col("pages").cast(pl.UInt64).sum().over("mm", "folio") == pl.col("folio_mapcount")
    anonymous_vma = (name.str.starts_with("[") & ~name.str.starts_with("[anon_shmem")) | name.is_in(
        ["", "/dev/zero"]
    )
    rows = frame.with_columns(anon=anon, words=words)
    why = (
        pl.when(~anonymous_vma | ~pl.col("vma_perms").cast(pl.String).str.ends_with("p"))
        .then(pl.lit("file"))
        .when(pl.col("words").list.contains("lo"))
        .then(pl.lit("locked"))
        .when(pl.col("words").list.contains("nh"))
        .then(pl.lit("nohugepage"))
        .when(pl.any_horizontal(pl.col("words").list.contains(flag) for flag in SPECIAL_FLAGS))
        .then(pl.lit("special"))
        .otherwise(pl.lit(""))
    )
    # by VMA: few, and the words of each are looked at once
    places = rows.unique(["mm", "vma"]).select("mm", "vma", vma_why=why)
    rows = rows.drop("words").join(places, on=["mm", "vma"], how="left", maintain_order="left")
    shared = pl.when(alone & (pl.col("order") == 0)).then(False).otherwise(~alone | ~ours)
    rows = rows.with_columns(
        why=pl.when(pl.col("anon") & (pl.col("vma_why") != ""))
        .then(pl.col("vma_why"))
        .when(pl.col("anon") & shared)
        .then(pl.lit("shared"))
        .otherwise(pl.lit(""))
    )
    # a folio with a page that stays stays whole
    large = pl.col("anon") & (pl.col("order") > 0)
    rows = rows.with_columns(
        why=pl.when(large & (pl.col("why") == ""))
        .then(pl.col("why").max().over("mm", "folio", "order"))
        .otherwise(pl.col("why"))
    )
    free = pl.col("vma_why") == ""
    zero = free & (kind == "special") & (flags & bit(KPF_ZERO_PAGE) != 0)
    good = pl.col("anon") & (pl.col("why") == "")
    return rows.with_columns(
        pl.when(good & (kind == "pmd"))
        .then(GOOD_PMD)
        .when(good)
        .then(GOOD)
        .when(zero)
        .then(ZERO)
        .when(free & (kind == "swap"))
        .then(SWAPPED)
        .otherwise(OTHER)
        .cast(pl.Int8)
        .alias("class")
    ).drop("anon", "vma_why")


def _may_change(rows: pl.DataFrame) -> int:
    """Private anonymous pages that may change. Those of a folio made here are none of them."""
    return int(rows.filter(pl.col("class") >= GOOD)["pages"].cast(pl.Int64).sum())


HEAD_AND_TAIL: Final = bit(KPF_COMPOUND_HEAD) | bit(KPF_COMPOUND_TAIL) | bit(KPF_THP)


def _split(rows: pl.DataFrame) -> pl.DataFrame:
    """Large folios that may change become single pages, on the frames that they have."""
    large = (pl.col("class") >= GOOD) & (pl.col("order") > 0)
    single: dict[str, Any] = {
        "kind": pl.lit("page"),
        "folio": pl.col("pfn"),
        "order": pl.lit(0),
        "kpageflags": pl.col("kpageflags") & ~pl.lit(HEAD_AND_TAIL, pl.UInt64),
        "folio_mapped": pl.lit(1),
        "folio_mapcount": pl.lit(1),
        "class": pl.lit(GOOD),
    }
    types = rows.schema
    return rows.with_columns(
        pl.when(large)
        .then(new)
        .otherwise(pl.col(name).cast(pl.String) if name == "kind" else pl.col(name))
        .cast(types[name])
        .alias(name)
        for name, new in single.items()
    )


# ------------------------------------------------------------------ blocks become folios


class _Frames:
    """Frames that no row of the trace has."""

    def __init__(self, first: int) -> None:
        self.next = first

    def folios(self, count: int, order: int) -> I64:
        """The first frames of so many folios."""
        start = -(-self.next >> order) << order
        self.next = start + (count << order)
        return start + (np.arange(count, dtype=np.int64) << order)


def _first_free_frame(frame: pl.DataFrame, order: int) -> int:
    if frame.is_empty():
        return 1 << order
    size = 2 ** pl.col("order").cast(pl.Int64)
    ends = frame.select(
        pl.max_horizontal(pl.col("pfn") + pl.col("pages"), pl.col("folio") + size).max()
    ).item()
    return int(ends)


def _rewritten(
    rows: pl.DataFrame, order: int, largest: int, limit: int | None, by_ptes: bool, frames: _Frames
) -> tuple[pl.DataFrame, int, dict[str, int]]:
    """Blocks of 2^order pages become folios -> (rows, folios made, pages that stay by reason).

    limit: of empty entries in a block that khugepaged collapses; None: any page makes a folio.
    """
    cut = _cut(rows, order)
    pages = cut.last + 1 - cut.first
    kinds = rows["class"].to_numpy()[cut.row]
    is_good = kinds >= GOOD
    starts = np.flatnonzero(cut.begins)
    if len(starts) == 0:
        return rows, 0, _staying(rows, {})

    def total(which: Bool) -> I64:
        return np.add.reduceat(np.where(which, pages, 0), starts)

    good, swapped, other = total(is_good), total(kinds == SWAPPED), total(kinds == OTHER)
    size = 1 << order
    block = (cut.first[starts] >> order) << order
    fits = (block >= cut.vma_start[starts]) & (block + size <= cut.vma_end[starts])
    made = fits & (good > 0) & (other == 0)
    if limit is None:
        made &= swapped == 0
    else:
        in_use = (swapped == 0) | (good >= size // 2)
        made &= (size - good - swapped <= limit) & (swapped <= size // 8) & in_use
        made &= total(kinds == GOOD_PMD) == 0
    of_block = np.cumsum(cut.begins) - 1
    gone = made[of_block]
    by_pmd = order == largest and not by_ptes
    # the first private page of each block lends the folio what it does not decide
    first_good = np.full(len(starts), len(kinds), np.int64)
    np.minimum.at(first_good, of_block[is_good], np.flatnonzero(is_good))
    new = _folios(rows, cut.row[first_good[made]], block[made], order, by_pmd, frames)
    soft = np.logical_or.reduceat(rows["soft_dirty"].to_numpy()[cut.row] & is_good, starts)[made]
    new = new.with_columns(pl.Series("soft_dirty", soft))
    kept = _kept(rows, cut, gone)
    reasons = {
        "edge": ~fits,
        "mapped by a PMD": fits & (total(kinds == GOOD_PMD) > 0) & (limit is not None),
        "mixed": fits & ((other > 0) | (swapped > 0) & (limit is None)),
        "sparse": fits & (other == 0) & (limit is not None) & (total(kinds == GOOD_PMD) == 0),
    }
    staying = {name: int(good[~made & where].sum()) for name, where in reasons.items()}
    together = pl.concat([kept, new.select(kept.columns).cast(kept.schema)])
    return together.sort("mm", "vpn", maintain_order=True), int(made.sum()), _staying(rows, staying)


def _staying(rows: pl.DataFrame, in_blocks: dict[str, int]) -> dict[str, int]:
    """Pages that stay by reason: those of VMAs and folios, and those of blocks."""
    found = rows.filter(pl.col("why") != "").group_by("why").agg(pl.col("pages").cast(pl.Int64).sum())
    counts = dict(found.iter_rows()) | in_blocks
    return {name: counts[name] for name in STAYS if counts.get(name)}


@dataclasses.dataclass(frozen=True)
class _Cut:
    """Rows cut at the borders of blocks: int64 arrays of shape (pieces,), `begins` bool.

    row: of the frame; first, last: page numbers; vma_start, vma_end: page numbers of its VMA; begins: the
    first piece of a block of one VMA.
    """

    row: I64
    first: I64
    last: I64
    vma_start: I64
    vma_end: I64
    begins: Bool


def _cut(rows: pl.DataFrame, order: int) -> _Cut:
    """All rows, cut at the borders of blocks of 2^order pages."""
    names = ("mm", "vma", "vpn", "pages", "vma_start", "vma_pages")
    mm, vma, vpn, pages, vma_start, vma_pages = (rows[name].cast(pl.Int64).to_numpy() for name in names)
    first, last = vpn >> order, (vpn + pages - 1) >> order
    row, within = _repeated(last - first + 1)
    block = first[row] + within
    begins = np.ones(len(row), np.bool_)
    same = (block[1:] == block[:-1]) & (mm[row][1:] == mm[row][:-1]) & (vma[row][1:] == vma[row][:-1])
    begins[1:] = ~same
    start, end = vma_start[row], (vma_start + vma_pages)[row]
    return _Cut(
        row,
        np.maximum(vpn[row], block << order),
        np.minimum((vpn + pages - 1)[row], ((block + 1) << order) - 1),
        start,
        end,
        begins,
    )


def _repeated(counts: I64) -> tuple[I64, I64]:
    """For each of `counts` its index, so many times, and the numbers from 0 on beside it."""
    row = np.repeat(np.arange(len(counts)), counts)
    return row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)


def _kept(rows: pl.DataFrame, cut: _Cut, gone: Bool) -> pl.DataFrame:
    """Rows without the pieces that are gone; a row that loses nothing stays one row."""
    loses = np.bincount(cut.row, weights=gone, minlength=len(rows)) > 0
    whole = rows.filter(pl.Series(~loses))
    pieces = np.flatnonzero(loses[cut.row] & ~gone)
    row, first, last = cut.row[pieces], cut.first[pieces], cut.last[pieces]
    parts = rows[row.tolist() if len(row) == 0 else row]
    # a marker is no page: it has the same word wherever it is
    moved = pl.when(pl.col("kind").cast(pl.String) == "marker").then(0).otherwise(pl.col("moved"))
    parts = (
        parts.with_columns(pl.Series("moved", first) - parts["vpn"])
        .with_columns(
            pl.Series("vpn", first),
            pl.Series("pages", (last - first + 1).astype(np.uint32)),
            (pl.col("pfn") + moved).alias("pfn"),
            pl.when(pl.col("order") > 0)
            .then(pl.col("folio"))
            .otherwise(pl.col("folio") + moved)
            .alias("folio"),
        )
        .drop("moved")
    )
    return pl.concat([whole, parts])


def _folios(
    rows: pl.DataFrame, like: I64, block: I64, order: int, by_pmd: bool, frames: _Frames
) -> pl.DataFrame:
    """Rows of new folios, one each, otherwise like the rows `like`, at the page numbers `block`."""
    size = 1 << order
    head = pl.Series(frames.folios(len(block), order))
    set_flags = bit(KPF_COMPOUND_HEAD) | bit(KPF_THP) | bit(KPF_LRU)
    return rows[like.tolist() if len(like) == 0 else like].with_columns(
        pl.Series("vpn", block),
        pages=pl.lit(size),
        kind=pl.lit("pmd" if by_pmd else "page"),
        pfn=head,
        folio=head,
        file=pl.lit(False),
        exclusive=pl.lit(True),
        uffd_wp=pl.lit(False),
        dirty=pl.lit(False),
        # a large folio does not wait in an LRU batch: folio_may_be_lru_cached()
        kpageflags=pl.col("kpageflags") & ~pl.lit(bit(KPF_COMPOUND_TAIL), pl.UInt64)
        | pl.lit(set_flags, pl.UInt64),
        mapcount=pl.lit(1),
        own=pl.lit(1),
        order=pl.lit(order),
        folio_mapped=pl.lit(size),
        folio_mapcount=pl.lit(size),
        # a smaller order does not take it again
        **{"class": pl.lit(OTHER), "why": pl.lit("")},
    )


def _remainders(rows: pl.DataFrame) -> pl.DataFrame:
    """Large folios of which khugepaged took some pages: the totals of what is left of them."""
    partly = (pl.col("class") == GOOD) & (pl.col("order") > 0)
    left = pl.col("pages").cast(pl.UInt64).sum().over("mm", "folio", "order")
    return rows.with_columns(
        pl.when(partly).then(left).otherwise(pl.col(name)).cast(rows.schema[name]).alias(name)
        for name in ("folio_mapped", "folio_mapcount")
    )


def _resident(trace: Trace, frame: pl.DataFrame) -> tuple[tuple[Any, ...], int]:
    """The address spaces with the RSS and swap of the rewritten frame, and the pages added in all."""

    before, after = (totals.sums(rows, len(trace.meta.address_spaces)) for rows in (trace.frame, frame))
    change = dict(zip(totals.TYPES, (after - before).T.tolist(), strict=True))
    spaces = []
    for mm, space in enumerate(trace.meta.address_spaces):
        more = space.unaccounted
        if more is not None and change["special"][mm]:
            more = dict(more) | {"special": more.get("special", 0) + change["special"][mm]}
        spaces.append(
            dataclasses.replace(
                space,
                rss_anon=max(space.rss_anon + change["rss_anon"][mm], 0),
                swap=max(space.swap + change["swap"][mm], 0),
                unaccounted=more,
            )
        )
    return tuple(spaces), sum(change["rss_anon"])


# ------------------------------------------------------------------ page cache


def _is_page_cache() -> pl.Expr:
    """Rows of page cache that may change: mapped by PTEs, each page once in its address space."""
    flags, name = pl.col("kpageflags"), pl.col("vma_name").cast(pl.String)
    other = bit(KPF_ANON) | bit(KPF_SWAPBACKED) | bit(KPF_HUGE)
    named = (name != "") & ~name.str.starts_with("[")
    return (
        (pl.col("kind").cast(pl.String) == "page")
        & (flags & other == 0)
        & pl.col("file")
        & (pl.col("own") == 1)
        & named
    )


def _whole_folios() -> pl.Expr:
    """Rows whose folio has no row that stays."""
    return pl.col("cache").all().over("mm", "folio", "order") | (pl.col("cache") & (pl.col("order") == 0))


def _page_cache(frame: pl.DataFrame, order: int, frames: _Frames) -> pl.DataFrame:
    """Page cache in folios of 2^order pages that are aligned in their files."""
    name = pl.col("vma_name").cast(pl.String)
    rows = frame.with_columns(cache=_is_page_cache()).with_columns(cache=_whole_folios())
    # neighbours of one name are parts of one mapping: the first begins at offset 0
    places = (
        rows.filter(name.is_not_null() & (name != ""))
        .unique(["mm", "vma"], maintain_order=True)
        .sort("mm", "vma")
        .select("mm", "vma", "vma_start", name.alias("text"))
        .with_columns(new=(pl.col("text") != pl.col("text").shift(1)).over("mm").fill_null(True))
        .with_columns(mapping=pl.col("new").cast(pl.UInt32).cum_sum().over("mm"))
        .with_columns(
            base=pl.col("vma_start").first().over("mm", "mapping").cast(pl.Int64),
            # how many mappings of this name came before: the same file in each address space
            nth=pl.col("new").cast(pl.UInt32).cum_sum().over("mm", "text"),
        )
        .select("mm", "vma", "base", "text", "nth")
    )
    rows = rows.join(places, on=["mm", "vma"], how="left", maintain_order="left")
    # large folios that are there already show how a VMA lies in its file, as far as the largest of them goes
    size = 2 ** pl.col("order").cast(pl.Int64)
    seen = (pl.col("pfn") - pl.col("folio") - pl.col("vpn") + pl.col("base")) % size
    shown = (
        rows.filter(pl.col("cache") & (pl.col("order") > 0))
        .sort("order", descending=True, maintain_order=True)
        .unique(["mm", "vma"], keep="first", maintain_order=True)
        .select("mm", "vma", shift=seen)
    )
    rows = rows.join(shown, on=["mm", "vma"], how="left", maintain_order="left").with_columns(
        shift=pl.col("shift").fill_null(0)
    )
    chosen, rest = rows.filter("cache"), rows.filter(~pl.col("cache"))
    if chosen.is_empty():
        return frame
    index = (chosen["vpn"] - chosen["base"] + chosen["shift"]).to_numpy()
    pages = chosen["pages"].cast(pl.Int64).to_numpy()
    first, last = index >> order, (index + pages - 1) >> order
    row, within = _repeated(last - first + 1)
    block = first[row] + within
    begin = np.maximum(index[row], block << order)
    end = np.minimum((index + pages)[row], (block + 1) << order)
    cut = chosen[row].with_columns(
        pl.Series("block", block),
        pl.Series("vpn", chosen["vpn"].to_numpy()[row] + begin - index[row]),
        pl.Series("pages", (end - begin).astype(np.uint32)),
        pl.Series("page", begin & ((1 << order) - 1)),
    )
    which = pl.struct("text", "nth", "shift", "block")
    number = cut.select(which.rank("dense").cast(pl.Int64) - 1).to_series()
    heads = frames.folios(int(number.max()) + 1, order)[number.to_numpy()]  # type: ignore[arg-type]
    count = pl.col("pages").cast(pl.UInt64)
    flags = (
        pl.col("kpageflags").first().over("mm", "folio") & ~pl.lit(bit(KPF_COMPOUND_TAIL), pl.UInt64)
    ) | (pl.lit(bit(KPF_COMPOUND_HEAD) | bit(KPF_THP), pl.UInt64))
    cut = cut.with_columns(pl.Series("folio", heads), pl.lit(order).alias("order")).with_columns(
        (pl.col("folio") + pl.col("page")).alias("pfn"),
        flags.alias("kpageflags"),
        pl.col("memcg").first().over("mm", "folio"),
        count.sum().over("mm", "folio").alias("folio_mapped"),
        (count * pl.col("mapcount")).sum().over("mm", "folio").alias("folio_mapcount"),
    )
    columns = list(SCHEMA)
    together = pl.concat([rest.select(columns), cut.select(columns).cast(SCHEMA)])  # type: ignore[arg-type]
    return together.sort("mm", "vpn", maintain_order=True)


def _split_page_cache(frame: pl.DataFrame) -> pl.DataFrame:
    """Page cache in single pages, on the frames that it has."""
    rows = frame.with_columns(cache=_is_page_cache()).with_columns(cache=_whole_folios())
    large = pl.col("cache") & (pl.col("order") > 0)
    single: dict[str, Any] = {
        "folio": pl.col("pfn"),
        "order": pl.lit(0),
        "kpageflags": pl.col("kpageflags") & ~pl.lit(HEAD_AND_TAIL, pl.UInt64),
        "folio_mapped": pl.lit(1),
        "folio_mapcount": pl.col("mapcount"),
    }
    return rows.with_columns(
        pl.when(large).then(new).otherwise(pl.col(name)).cast(rows.schema[name]).alias(name)
        for name, new in single.items()
    ).drop("cache")
