"""The tables that a terminal shows, as rich renderables; nothing here prints."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.table import Table

from replay.report import inspect
from replay.teardown.algorithms import BASELINE
from replay.trace.frame import Trace

SHOWN = ("rmap_calls", "atomics", "locks", "release_entries", "release_calls", "deferred_split_queued")
"""The counters of the comparison that fit a terminal, each with its share avoided."""


WHOLE = 20
"""Columns up to this width are never cut or folded."""


def comparison(compared: pl.DataFrame, title: str) -> Table:
    """The comparison of one total: a row per algorithm, counts with the baseline's share avoided."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("algorithm", no_wrap=True)
    for name in SHOWN:
        table.add_column(name.replace("_", " "), justify="right", overflow="fold")
    for row in compared.iter_rows(named=True):
        cells = [_cell(row, name) for name in SHOWN]
        table.add_row(row["algorithm"], *cells, style="dim" if row["algorithm"] == BASELINE else None)
    return table


def _cell(row: dict[str, object], name: str) -> str:
    count = f"{row[name]:,}"
    share = row[f"{name}_avoided_pct"]
    if row["algorithm"] == BASELINE or share == 0:
        return count
    if share is None:
        return f"{count}\n(baseline: 0)"
    # what is left of a count must not round away
    change = -float(str(share))
    digits = 2 if -100 < change <= -99.9 else 1
    return f"{count}\n{change:+.{digits}f} %"


def plain(frame: pl.DataFrame, title: str, right: Sequence[str] = ()) -> Table:
    """Any small table; numbers and the columns of `right` are set to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    cells = {name: [_text(name, value) for value in frame[name]] for name in frame.columns}
    for name, dtype in frame.schema.items():
        words = name.split("_")
        width = max(map(len, words + cells[name]))
        table.add_column(
            " ".join(words),
            justify="right" if dtype.is_numeric() or name in right else "left",
            min_width=width if width <= WHOLE else None,
            no_wrap=name == "name",
        )
    for row in zip(*cells.values(), strict=True):
        table.add_row(*row)
    return table


def _text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) and name != "pid" else str(value)


def inspection(trace: Trace, rows: pl.DataFrame, most_vmas: int) -> list[Table]:
    """Kinds, folio orders, sharing and the largest VMAs of a trace."""
    kib = trace.meta.page_size // 1024

    def size(pages: str) -> pl.Expr:
        return (pl.col(pages) * kib).cast(pl.Int64).alias("KiB")

    vmas = inspect.vmas(rows)
    largest = vmas.sort("mapped", "swapped", descending=True, maintain_order=True).head(most_vmas)
    shown = largest.select(
        "pid",
        (pl.col("vma_start") * trace.meta.page_size)
        .map_elements(lambda start: f"{start:x}", pl.String)
        .alias("start"),
        pl.col("vma_perms").alias("perms"),
        pl.col("vma_pages").alias("pages"),
        "mapped",
        "swapped",
        "extents",
        pl.col("largest_order").alias("order"),
        pl.col("vma_name").str.replace("^.*/", "").alias("name"),
    )
    if len(trace.meta.address_spaces) == 1:
        shown = shown.drop("pid")
    if vmas["swapped"].sum() == 0:
        shown = shown.drop("swapped")
    return [
        plain(
            inspect.kinds(rows).select("type", "kind", "pages", size("pages"), "extents"), "What is mapped"
        ),
        plain(
            inspect.orders(rows).select("type", "kind", "order", "folios", "whole", "pages", size("pages")),
            "Folios by order (whole: every page of the folio is mapped here)",
        ),
        plain(
            inspect.sharing(rows).select("type", "mapped_by", "pages", size("pages")), "Who maps the pages"
        ),
        plain(
            shown,
            f"VMAs with pages: the largest {len(shown)} of {len(vmas)} (order: of the largest folio)",
            right=("start",),
        ),
    ]
