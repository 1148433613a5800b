# SPDX-License-Identifier: Apache-2.0
"""What folios of other orders save, and what memory they take: tables of counters by folio order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Final

import polars as pl

from replay.report import compare
from replay.support.text import byte_size as size
from replay.teardown import replayer
from replay.teardown.algorithms import BASELINE, Algorithm
from replay.teardown.counters import CHECKS
from replay.trace.frame import Trace
from replay.trace.whatif import STAYS, Policy, WhatIf, what_if

CAPTURED: Final = "as captured"
"""The name of the memory as it is, beside the what-ifs."""

COLUMNS: Final = ("what_if", "order", "pages_added", "resident_pages")
"""The columns of `by_order` about the memory. They stand before the counters."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """A trace in one form: as captured (order None) or with folios of one order; figures in pages."""

    trace: Trace
    order: int | None
    added: int

    @property
    def name(self) -> str:
        return CAPTURED if self.order is None else f"order {self.order}"


def variants(
    trace: Trace, orders: Sequence[int], *, by_ptes: bool = False, page_cache: bool = False
) -> Iterator[Variant]:
    """The trace as captured, then with folios of each order (policy `fault`)."""
    yield Variant(trace, None, 0)
    for order in orders:
        found = what_if(trace, [order], policy=Policy.FAULT, by_ptes=by_ptes, page_cache=page_cache)
        yield Variant(found.trace, order, found.added)


def resident(trace: Trace) -> int:
    """RssAnon, RssFile and RssShmem of all address spaces, in pages; a shared page counts in each."""
    return sum(space.rss_anon + space.rss_file + space.rss_shmem for space in trace.meta.address_spaces)


def by_order(
    traces: Sequence[Trace],
    orders: Sequence[Sequence[int]],
    algorithms: Sequence[str] | Sequence[Algorithm] | None = None,
    *,
    page_tables: str | None = None,
    by_ptes: bool = False,
    page_cache: bool = False,
) -> pl.DataFrame:
    """Counters of each address space, algorithm and folio order: a frame of `run_checked` with `COLUMNS` in
    front.

    orders: for each trace, as page sizes may differ. algorithms: all if None; the baseline must be among
    them. `order` is null for the memory as captured. `pages_added` and `resident_pages` are those of the
    whole trace.
    """
    frames = []
    for trace, chosen in zip(traces, orders, strict=True):
        for variant in variants(trace, chosen, by_ptes=by_ptes, page_cache=page_cache):
            counted = replayer.run_checked(variant.trace, algorithms, page_tables=page_tables)
            frames.append(
                counted.select(
                    pl.lit(variant.name).alias("what_if"),
                    pl.lit(variant.order, pl.Int64).alias("order"),
                    pl.lit(variant.added, pl.Int64).alias("pages_added"),
                    pl.lit(resident(variant.trace), pl.Int64).alias("resident_pages"),
                    pl.all(),
                )
            )
    return pl.concat(frames)


def compared(results: pl.DataFrame, per: Sequence[str], baseline: str = BASELINE) -> pl.DataFrame:
    """A frame of `by_order` summed up by `per`; each order has its own baseline (see `compare`)."""
    memory = (
        results.group_by("what_if", "trace", maintain_order=True)
        .agg(pl.col("pages_added", "resident_pages").first())
        .group_by("what_if", *(["trace"] if "trace" in per else []), maintain_order=True)
        .agg(pl.col("pages_added", "resident_pages").sum())
    )
    rows = results.drop("pages_added", "resident_pages", *CHECKS)
    keys = ["what_if", "order", *per]
    summed = rows if "mm" in per else compare.total(rows, keys)
    frame = compare.compare(summed.with_columns(pl.col("order").fill_null(-1)), keys, baseline)
    frame = frame.with_columns(pl.when(pl.col("order") >= 0).then(pl.col("order")).alias("order"))
    on = [name for name in ("what_if", "trace") if name in memory.columns]
    joined = frame.join(memory, on=on, how="left", maintain_order="left")
    first = ["what_if", "order", "pages_added", "resident_pages"]
    return joined.select(*first, pl.exclude(first))


def grid(frame: pl.DataFrame, counter: str) -> pl.DataFrame:
    """One counter of `compared` totals: a row per algorithm, a column per form of the memory."""
    return frame.pivot("what_if", index="algorithm", values=counter, maintain_order=True)


def memory(frame: pl.DataFrame) -> dict[str, tuple[int, int]]:
    """Form of the memory -> (pages added, resident pages)."""
    rows = frame.unique("what_if", maintain_order=True)
    return {name: (added, rss) for name, added, rss in rows.select("what_if", *COLUMNS[2:]).iter_rows()}


def summary(before: Trace, found: WhatIf) -> list[str]:
    """What a what-if did, as lines for people."""
    page = before.meta.page_size
    made = ", ".join(
        f"{count:,} folio{'' if count == 1 else 's'} of order {order}"
        for order, count in found.folios.items()
    )
    lines = [f"{before.name}: {found.trace.meta.what_if}"]
    if made:
        number = sum(found.folios.values())
        lines.append(
            f"made: {made}; {'it holds' if number == 1 else 'they hold'} {found.taken:,} of the "
            f"{found.anonymous:,} private anonymous pages ({size(found.taken * page)})"
        )
    old, new = resident(before), resident(found.trace)
    share = f", {found.added / old * 100:+.1f} %" if old else ""
    lines.append(
        f"memory: {size(found.added * page, sign=True)} ({size(old * page)} resident before, "
        f"{size(new * page)} after{share})"
    )
    for reason, pages in found.stays.items():
        lines.append(f"not changed: {size(pages * page)} {STAYS[reason]}")
    if found.folios and not any(found.folios.values()):
        lines.append("note: nothing changed, because no VMA holds a whole block of this size")
    return lines


def document(before: Trace, found: WhatIf, counts: pl.DataFrame) -> dict[str, Any]:
    """What a what-if did, as JSON.

    counts: a frame of `compared`.
    """
    return {
        "trace": before.name,
        "what_if": found.trace.meta.what_if,
        "units": "pages of page_size bytes",
        "page_size": before.meta.page_size,
        "folios": found.folios,
        "private_anonymous_pages": found.anonymous,
        "pages_that_may_change": found.pages,
        "pages_taken": found.taken,
        "pages_added": found.added,
        "stays": found.stays,
        "counts": counts.to_dicts(),
    }
