"""The tables that a terminal shows, as rich renderables; nothing here prints.

No number is ever cut or folded: of what does not fit the width, the last columns are left out and named.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.table import Table

from replay.report import diff, inspect, whatif
from replay.support.text import printable
from replay.teardown.algorithms import BASELINE
from replay.trace.frame import Trace

SHOWN = ("rmap_calls", "atomics", "locks", "release_entries", "release_calls", "deferred_split_queued")
"""The counters of the comparison that fit a terminal, each with its share avoided."""

GAP = 3
"""Columns of the terminal between two of a table."""

FREE = ("name", "causes")
"""Columns of text that may be cut to `FREE_WIDTH`."""
FREE_WIDTH = 12


RUNNING = " *"
"""Behind the name of what the kernel does that the trace was taken on."""


def comparison(
    compared: pl.DataFrame,
    title: str,
    width: int,
    baseline: str = BASELINE,
    running: Collection[str] = (),
) -> Table:
    """The comparison of one total: a row per algorithm, counts with their change against the baseline.

    running: names of the algorithms to mark.
    """
    rows = compared.to_dicts()
    marks = [RUNNING if row["algorithm"] in running else "" for row in rows]
    cells = {"algorithm": [f"{row['algorithm']}{mark}" for row, mark in zip(rows, marks, strict=True)]}
    cells |= {name: [_cell(row, name, baseline) for row in rows] for name in SHOWN}
    styles = ["dim" if row["algorithm"] == baseline else None for row in rows]
    return _table(cells, title, width, right=SHOWN, styles=styles)


def _cell(row: Mapping[str, object], name: str, baseline: str) -> str:
    count = f"{row[name]:,}"
    avoided, share = row[f"{name}_avoided"], row[f"{name}_avoided_pct"]
    if row["algorithm"] == baseline or avoided == 0:
        return count
    if share is None:
        return f"{count}\n(from 0)"
    return f"{count}\n{_change(int(str(row[name])), int(str(avoided)))} %"


def _change(count: int, avoided: int) -> str:
    """The change against the baseline in percent; neither a small change nor a small rest rounds away."""
    change = -avoided / (count + avoided) * 100
    texts = [f"{change:+.{digits}f}" for digits in range(1, 7)]
    told = (text for text in texts if float(text) != 0 and (float(text) != -100 or count == 0))
    return next(told, texts[-1])


COUNTS_BY_ORDER = ("rmap_calls", "atomics", "locks", "release_calls")
"""The counters of `by_order`, a table each."""


def before_and_after(compared: pl.DataFrame, name: str, width: int) -> Table:
    """Two forms of the memory (see `report.whatif`): a row per algorithm, each counter before and after."""
    before, after = (
        compared.filter(pl.col("what_if") == what).to_dicts() for what in (whatif.CAPTURED, name)
    )
    cells = {"algorithm": [row["algorithm"] for row in before]}
    for counter in SHOWN:
        cells[counter] = [
            f"{old[counter]:,}\n{new[counter]:,}{_against(new[counter], old[counter])}"
            for old, new in zip(before, after, strict=True)
        ]
    title = "Counts: the memory as captured, and below it the what-if"
    return _table(cells, title, width, right=SHOWN, styles=[None] * len(before))


def _against(count: int, base: int) -> str:
    """How a count differs from another, in brackets: nothing if it does not."""
    if count == base:
        return ""
    return f" ({_change(count, base - count)} %)" if base else " (from 0)"


def by_order(
    chosen: pl.DataFrame, everything: pl.DataFrame, title: str, page_size: int, width: int
) -> Iterator[Table]:
    """Algorithm by folio order: memory, then a table for each counter (frames of `whatif.compared`).

    Percentages are against the baseline on the memory as captured.
    """
    found = whatif.memory(everything)
    memory = {
        "memory": list(found),
        "folios": [
            whatif.size(page_size << order) if order is not None else ""
            for order in everything.unique("what_if", maintain_order=True)["order"]
        ],
        "resident": [whatif.size(rss * page_size) for _, rss in found.values()],
        "added": [whatif.size(added * page_size, sign=True) if added else "" for added, _ in found.values()],
    }
    yield _table(memory, title, width, right=("folios", "resident", "added"))
    base = everything.filter((pl.col("algorithm") == BASELINE) & (pl.col("what_if") == whatif.CAPTURED))
    for counter in COUNTS_BY_ORDER:
        grid = whatif.grid(chosen, counter)
        cells: dict[str, list[str]] = {"algorithm": grid["algorithm"].to_list()}
        for name in grid.columns[1:]:
            cells[name] = [f"{count:,}\n{_plain_change(count, base[counter][0])}" for count in grid[name]]
        yield _table(
            cells, f"{_heading(counter)}, and against the baseline as captured", width, right=grid.columns[1:]
        )


def _plain_change(count: int, base: int) -> str:
    if count == base or not base:
        return ""
    return f"{_change(count, base - count)} %"


def difference(
    before: diff.Side, after: diff.Side, changes: pl.DataFrame, top: int, width: int
) -> Iterator[Table]:
    """What changed between two traces or results: memory and kinds of VMA of traces, then counters."""
    if before.trace is not None and after.trace is not None:
        figures = [diff.memory(trace.meta) for trace in (before.trace, after.trace)]
        memory = {
            "memory": list(diff.MEMORY),
            **{
                name: [whatif.size(found[figure]) for figure in diff.MEMORY]
                for name, found in zip(("before", "after"), figures, strict=True)
            },
            "change": [_plain_change(figures[1][name], figures[0][name]) for name in diff.MEMORY],
        }
        title = f"From {before.name} to {after.name}"
        yield _table(memory, title, width, right=("before", "after", "change"))
        pages = diff.vmas(before.trace, after.trace)
        if before.trace.meta.page_size == after.trace.meta.page_size:
            yield plain(pages, "Pages by kind of VMA (large: of folios above order 0)", width)
    changed = diff.grouped(changes)
    if changed.is_empty():
        yield plain(changed.clear(), f"From {before.name} to {after.name}: no counter changed", width)
        return
    shown = changed.head(top).with_columns(
        pl.struct("before", "after")
        .map_elements(lambda pair: _plain_change(pair["after"], pair["before"]) or "new", pl.String)
        .alias("change_pct")
    )
    title = f"Counters that changed: {len(shown):,} of {len(changed):,}, the largest change first"
    yield plain(shown, title, width, right=("change_pct",))


def plain(frame: pl.DataFrame, title: str, width: int, right: Sequence[str] = ()) -> Table:
    """Any small table; numbers and the columns of `right` are set to the right."""
    cells = {name: [_text(name, value) for value in frame[name]] for name in frame.columns}
    numbers = [name for name, dtype in frame.schema.items() if dtype.is_numeric()]
    return _table(cells, title, width, right=[*numbers, *right])


def _table(
    cells: Mapping[str, Sequence[str]],
    title: str,
    width: int,
    right: Sequence[str],
    styles: Sequence[str | None] = (),
) -> Table:
    """A table of these columns, as many as fit `width` columns of the terminal."""
    widths = {
        name: min(_widest(name, column), FREE_WIDTH if name in FREE else width)
        for name, column in cells.items()
    }
    shown = list(cells)
    while len(shown) > 1 and sum(widths[name] + GAP for name in shown) - 1 > width:
        # what is called a name says what the row is
        shown.pop(-2 if shown[-1] == "name" and len(shown) > 2 else -1)
    hidden = [_heading(name) for name in cells if name not in shown]
    table = Table(
        title=printable(title),
        caption=f"no room for: {', '.join(hidden)}" if hidden else None,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in shown:
        table.add_column(
            _heading(name),
            justify="right" if name in right else "left",
            min_width=widths[name],
            overflow="ellipsis",
            no_wrap=name in FREE,
        )
    for number, row in enumerate(zip(*(cells[name] for name in shown), strict=True)):
        table.add_row(*row, style=styles[number] if styles else None)
    return table


def _heading(name: str) -> str:
    return name.replace("_", " ")


def _widest(name: str, cells: Sequence[str]) -> int:
    return max(map(len, [*name.split("_"), *(line for cell in cells for line in cell.split("\n"))]))


def _text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) and name != "pid" else printable(str(value))


def inspection(trace: Trace, rows: pl.DataFrame, most_vmas: int, width: int) -> list[Table]:
    """Kinds, folio orders, sharing and the largest VMAs of a trace, for so many columns of the terminal."""
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
    found = {
        "What is mapped": inspect.kinds(rows).select("type", "kind", "pages", size("pages"), "extents"),
        "Folios by order (whole: every page of the folio is mapped here)": inspect.orders(rows).select(
            "type", "kind", "order", "folios", "whole", "pages", size("pages")
        ),
        "Who maps the pages": inspect.sharing(rows).select("type", "mapped_by", "pages", size("pages")),
        f"VMAs with pages: the largest {len(shown):,} of {len(vmas):,} (order: of the largest folio)": shown,
    }
    return [plain(frame, title, width, right=("start",)) for title, frame in found.items()]
