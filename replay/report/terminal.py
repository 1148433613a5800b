# SPDX-License-Identifier: Apache-2.0
"""The tables that a terminal shows, as rich renderables. Nothing here prints.

No number is cut or folded. Where the width is too small, columns are left out, the last ones first, and a
line names them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from replay.report import diff, folio_orders, inspect
from replay.report.compare import percent
from replay.support.text import printable
from replay.teardown.algorithms import BASELINE
from replay.teardown.counters import COUNTERS
from replay.trace.frame import Trace

SHOWN = ("rmap_calls", "atomics", "locks", "release_entries", "release_calls", "deferred_split_queued")
"""The counters of the comparison, the most important first."""

GAP = 3
"""Columns of the terminal between two columns of a table."""

FREE = ("name", "causes", "command line")
"""Columns of text that may be cut to `FREE_WIDTH`."""
FREE_WIDTH = 12
FOLDED = ("algorithms",)
"""Columns of words that may take several lines of `FOLDED_WIDTH`."""
FOLDED_WIDTH = 20


RUNNING = " *"
"""The mark of the algorithm that the trace's own kernel runs."""


def comparison(
    compared: pl.DataFrame,
    title: str,
    width: int,
    baseline: str = BASELINE,
    running: Collection[str] = (),
) -> Sheet:
    """The comparison of one total: a row per algorithm, counts with their change against the baseline.

    running: names of the algorithms to mark.
    """
    rows = compared.to_dicts()
    marks = [RUNNING if row["algorithm"] in running else "" for row in rows]
    cells = {"algorithm": [f"{row['algorithm']}{mark}" for row, mark in zip(rows, marks, strict=True)]}
    cells |= {name: [_cell(row, name, baseline) for row in rows] for name in SHOWN}
    styles = ["dim" if row["algorithm"] == baseline else None for row in rows]
    note = f"Changes are against {baseline}."
    return Sheet(cells, title, width, SHOWN, styles, note, COUNTERS)


def _cell(row: Mapping[str, object], name: str, baseline: str) -> str:
    count = f"{row[name]:,}"
    avoided, share = row[f"{name}_avoided"], row[f"{name}_avoided_pct"]
    if row["algorithm"] == baseline or avoided == 0:
        return count
    if share is None:
        return f"{count}\n(from 0)"
    after = int(str(row[name]))
    return f"{count}\n{percent(after, after + int(str(avoided)))} %"


RANKED = ("rmap_calls", "atomics", "locks", "release_calls")
"""The counters of the ranking."""


def ranked(
    compared: pl.DataFrame,
    cmdlines: Mapping[tuple[str, int], str],
    names: tuple[str, str],
    sort: str,
    top: int,
    width: int,
) -> Sheet:
    """A row for each address space, in the order of the frame, then one row for all of them together.

    compared: rows of one algorithm of `compare.compare`, each an address space; cmdlines: by trace and mm;
    names: of the algorithm and of its baseline; sort: the counter that they are ranked by, or `pid`.
    """
    algorithm, baseline = names
    rows = compared.head(top).to_dicts()
    # what ranks the rows is the last to be left out
    shown = list(RANKED if sort in ("pid", "ptes") else dict.fromkeys([sort, *RANKED]))
    counted = [*shown, *(f"{name}_avoided" for name in shown), "ptes"]
    rows.append(compared.select(pl.col(counted).sum()).to_dicts()[0])
    last = len(rows) - 1
    lines = [cmdlines.get((row["trace"], row["mm"]), "") for row in rows[:last]]
    cells: dict[str, list[str]] = {
        "pid": [*(str(row["pid"]) for row in rows[:last]), ""],
        "process": [*(printable(row["comm"]) for row in rows[:last]), f"all {len(compared):,}"],
    }
    if compared["trace"].n_unique() > 1:
        cells = {"trace": [*(printable(row["trace"]) for row in rows[:last]), ""]} | cells
    cells["PTEs"] = [f"{row['ptes']:,}" for row in rows]
    for name in shown:
        cells[name] = [
            f"{row[name]:,}{_against(row[name], row[name] + row[f'{name}_avoided'])}" for row in rows
        ]
    if any(lines):
        cells["command line"] = [*map(printable, lines), ""]
    note = f"Counts of {algorithm}, in brackets the change against {baseline}; no bracket: no change."
    note += " -a NAME shows another algorithm."
    if len(compared) > top:
        note += f" Not shown: {len(compared) - top:,} address spaces. --top N shows more, -o FILE writes all."
    styles = [None] * last + ["bold"]
    ranked_by = {"pid": "PID", "ptes": "PTEs"}.get(sort, _heading(sort))
    title = f"Address spaces under {algorithm}, ranked by {ranked_by}"
    return Sheet(cells, title, width, ("pid", "PTEs", *shown), styles, note, COUNTERS)


COUNTS_BY_ORDER = ("rmap_calls", "atomics", "locks", "release_calls")
"""The counters of `by_order`, a table each."""


def before_and_after(compared: pl.DataFrame, name: str, width: int) -> Sheet:
    """Two forms of the memory (`folio_orders`): a row per algorithm, each counter before and after."""
    before, after = (
        compared.filter(pl.col("what_if") == what).to_dicts() for what in (folio_orders.CAPTURED, name)
    )
    cells = {"algorithm": [row["algorithm"] for row in before]}
    for counter in SHOWN:
        cells[counter] = [
            f"{old[counter]:,}\n{new[counter]:,}{_against(new[counter], old[counter])}"
            for old, new in zip(before, after, strict=True)
        ]
    title = "First line: as captured. Second line: the what-if, and its change from the first."
    return Sheet(cells, title, width, SHOWN, meanings=COUNTERS)


def _against(count: int, base: int) -> str:
    """How a count differs from another, in brackets: nothing if it does not."""
    if count == base:
        return ""
    return f" ({percent(count, base)} %)" if base else " (from 0)"


def by_order(
    chosen: pl.DataFrame,
    everything: pl.DataFrame,
    title: str,
    page_size: int,
    width: int,
    baseline: str = BASELINE,
) -> Iterator[Sheet]:
    """Algorithm by folio order: memory, then a table for each counter (frames of `folio_orders.compared`).

    chosen: the algorithms to show. Percentages are against the baseline on the memory as captured.
    """
    found = folio_orders.memory(everything)
    memory = {
        "memory": list(found),
        "folio size": [
            folio_orders.size(page_size << order) if order is not None else ""
            for order in everything.unique("what_if", maintain_order=True)["order"]
        ],
        "resident": [folio_orders.size(rss * page_size) for _, rss in found.values()],
        "added": [
            folio_orders.size(added * page_size, sign=True) if added else "" for added, _ in found.values()
        ],
    }
    yield Sheet(memory, title, width, ("folio size", "resident", "added"))
    base = everything.filter((pl.col("algorithm") == baseline) & (pl.col("what_if") == folio_orders.CAPTURED))
    for counter in COUNTS_BY_ORDER:
        grid = folio_orders.grid(chosen, counter)
        cells: dict[str, list[str]] = {"algorithm": grid["algorithm"].to_list()}
        for name in grid.columns[1:]:
            cells[name] = [f"{count:,}\n{_plain_change(count, base[counter][0])}" for count in grid[name]]
        title = f"{_heading(counter)} (change: against {baseline} without the what-if)"
        yield Sheet(cells, title, width, grid.columns[1:], note=_meanings({counter: COUNTERS[counter]}))


def _plain_change(count: int, base: int) -> str:
    if count == base or not base:
        return ""
    return f"{percent(count, base)} %"


def difference(
    before: diff.Side, after: diff.Side, changes: pl.DataFrame, top: int, width: int
) -> Iterator[RenderableType]:
    """What changed between two traces or results: memory and kinds of pages of traces, then counters."""
    between = f"from '{before.name}' to '{after.name}'"
    changed = diff.grouped(changes)
    if changed.is_empty() and diff.same_memory(before, after):
        yield Text(f"Nothing changed {between}.")
        return
    if before.trace is not None and after.trace is not None:
        figures = [diff.memory(trace.meta) for trace in (before.trace, after.trace)]
        memory = {
            "memory": list(diff.MEMORY),
            **{
                name: [folio_orders.size(found[figure]) for figure in diff.MEMORY]
                for name, found in zip(("before", "after"), figures, strict=True)
            },
            "change": [_plain_change(figures[1][name], figures[0][name]) for name in diff.MEMORY],
        }
        yield Sheet(memory, f"Memory {between}", width, ("before", "after", "change"))
        pages = diff.kinds(before.trace, after.trace)
        if before.trace.meta.page_size == after.trace.meta.page_size:
            yield plain(pages, "Pages by kind (large: of folios above order 0)", width)
    if changed.is_empty():
        yield Text(f"No counter changed {between}.")
        return
    shown = changed.head(top).with_columns(
        pl.struct("before", "after")
        .map_elements(lambda pair: _plain_change(pair["after"], pair["before"]) or "new", pl.String)
        .alias("change_pct")
    )
    title = f"Changes, largest percentage first: rows 1 to {len(shown):,} of {len(changed):,}"
    note = CHANGES_NOTE + (" --top N shows more." if len(changed) > len(shown) else "")
    sheet = plain(shown, title, width, right=("change_pct",), note=note)
    yield dataclasses.replace(sheet, drop=("change",))


CHANGES_NOTE = "A row is a counter and the algorithms in which it changed alike."


def plain(
    frame: pl.DataFrame,
    title: str,
    width: int,
    right: Sequence[str] = (),
    note: str = "",
    meanings: Mapping[str, str] | None = None,
) -> Sheet:
    """A small table. Numbers and the columns of `right` are aligned to the right."""
    cells = {name: [_text(name, value) for value in frame[name]] for name in frame.columns}
    numbers = [name for name, dtype in frame.schema.items() if dtype.is_numeric()]
    return Sheet(cells, title, width, [*numbers, *right], note=note, meanings=meanings or {})


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A table as text: `cells` by column, and a line below it.

    right: columns set to the right. styles: of rich, for each row. width: columns of the terminal. meanings:
    what columns mean, by name; the line says it of those that are shown. drop: columns that are left out
    before the last ones where the width is too small.
    """

    cells: Mapping[str, Sequence[str]]
    title: str
    width: int
    right: Sequence[str] = ()
    styles: Sequence[str | None] = ()
    note: str = ""
    meanings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    drop: Sequence[str] = ()

    def text_below(self, shown: Iterable[str]) -> str:
        """The line below a table of these columns."""
        known = {name: self.meanings[name] for name in shown if name in self.meanings}
        return " ".join(filter(None, (self.note, _meanings(known))))

    def __rich__(self) -> RenderableType:
        """The table with as many of its columns as fit."""
        return _drawn(self)


def markdown(sheet: Sheet) -> str:
    """The table for an issue or a mail, all of its columns."""

    def line(cells: Iterable[str]) -> str:
        inside = (printable(cell).replace("|", "\\|") for cell in cells)
        return f"| {' | '.join(inside)} |"

    names = list(sheet.cells)
    rows = zip(*(sheet.cells[name] for name in names), strict=True)
    parts = [
        f"**{printable(sheet.title)}**",
        "",
        line(_heading(name) for name in names),
        line("---:" if name in sheet.right else "---" for name in names),
        *(line(_one_line(cell) for cell in row) for row in rows),
    ]
    below = sheet.text_below(names)
    return "\n".join([*parts, "", *([below, ""] if below else [])])


def _one_line(cell: str) -> str:
    """A cell of two lines as one line: the second line follows in brackets."""
    first, _, below = cell.partition("\n")
    return f"{first} {below if below.startswith('(') else f'({below})'}" if below else first


def _drawn(sheet: Sheet) -> RenderableType:
    """A table of the columns that fit the terminal, with what they mean below it."""
    cells, width = sheet.cells, sheet.width
    widths = {name: min(_widest(name, column), _most(name, width)) for name, column in cells.items()}
    shown = list(cells)
    leaving = list(reversed(sheet.drop))
    while len(shown) > 1 and sum(widths[name] + GAP for name in shown) - 1 > width:
        if leaving:
            shown.remove(leaving.pop())
        else:
            # the last column, called name, says what the row is, so it stays
            shown.pop(-2 if shown[-1] == "name" and len(shown) > 2 else -1)
    hidden = [_heading(name) for name in cells if name not in shown]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name, columns in _spread(cells, {name: widths[name] for name in shown}, width).items():
        table.add_column(
            _heading(name),
            justify="right" if name in sheet.right else "left",
            width=columns,
            overflow="ellipsis",
            no_wrap=name in FREE,
        )
    for number, row in enumerate(zip(*(cells[name] for name in shown), strict=True)):
        table.add_row(*row, style=sheet.styles[number] if sheet.styles else None)
    parts: list[RenderableType] = [Text(printable(sheet.title), style="bold"), table]
    if hidden:
        parts.append(
            Text(f"Columns left out, the terminal is too narrow: {', '.join(hidden)}", style="italic")
        )
    if below := sheet.text_below(shown):
        parts.append(Text(f"{below}\n", style="dim"))
    return Group(*parts)


def _spread(cells: Mapping[str, Sequence[str]], least: Mapping[str, int], width: int) -> dict[str, int]:
    """How wide each column is: at least what its cells need, and its heading on one line where there is room.

    rich would make columns narrower than their numbers to keep a heading on one line.
    """
    room = width - sum(columns + GAP for columns in least.values()) + 1
    widths = dict(least)
    for name, columns in least.items():
        wanted = max(columns, len(_heading(name)), *map(_columns_of, cells[name]))
        more = min(wanted - columns, max(room, 0))
        if name in (*FREE, *FOLDED) or columns + more == wanted:
            widths[name] += more
            room -= more
    return widths


def _columns_of(cell: str) -> int:
    return max(map(cell_len, cell.split("\n")))


def _meanings(meanings: Mapping[str, str]) -> str:
    """What columns mean, as one line."""
    return "; ".join(f"{_heading(name)}: {meaning}" for name, meaning in meanings.items()) + "." * bool(
        meanings
    )


def _heading(name: str) -> str:
    return name.replace("_", " ")


def _most(name: str, width: int) -> int:
    """How wide a column must be at most."""
    return FREE_WIDTH if name in FREE else FOLDED_WIDTH if name in FOLDED else width


def _widest(name: str, cells: Sequence[str]) -> int:
    return max(map(cell_len, [*name.split("_"), *(line for cell in cells for line in cell.split("\n"))]))


def _text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) and name != "pid" else printable(str(value))


def inspection(trace: Trace, rows: pl.DataFrame, most_vmas: int, width: int) -> Iterator[Sheet]:
    """Kinds, address spaces, folio orders, sharing and the largest VMAs, for columns of a terminal."""
    kib = trace.meta.page_size // 1024

    def size(pages: str) -> pl.Expr:
        return (pl.col(pages) * kib).cast(pl.Int64).alias("KiB")

    several = len(trace.meta.address_spaces) > 1
    kinds = inspect.kinds(rows).select(
        "type", "kind", "pages", size("pages"), _share("pages"), _large("large", "pages"), "extents"
    )
    yield plain(kinds, "What is mapped", width, SHARES, meanings=KINDS)
    if several:
        yield _processes(trace, rows, width)
    orders = inspect.orders(rows).select(
        "type", "kind", "order", "folios", "whole", "pages", size("pages"), _share("pages")
    )
    yield plain(orders, "Folios by order", width, SHARES, ORDERS_NOTE, ORDERS)
    sharing = inspect.sharing(rows).select("type", "mapped_by", "pages", size("pages"), _share("pages"))
    yield plain(sharing, "Who maps the pages", width, SHARES, SHARING_NOTE, SHARING)
    vmas = inspect.vmas(rows)
    largest = vmas.sort("mapped", "swapped", descending=True, maintain_order=True).head(most_vmas)
    shown = largest.select(
        "pid",
        (pl.col("vma_start") * trace.meta.page_size)
        .map_elements(lambda start: f"{start:x}", pl.String)
        .alias("start"),
        pl.col("vma_perms").alias("perms"),
        pl.col("vma_pages").alias("size"),
        "mapped",
        "swapped",
        _large("large", "mapped"),
        "extents",
        pl.col("largest_order").alias("order"),
        pl.col("vma_name").str.replace("^.*/", "").alias("name"),
    )
    if not several:
        shown = shown.drop("pid")
    if vmas["swapped"].sum() == 0:
        shown = shown.drop("swapped")
    title = f"VMAs with pages: the largest {len(shown):,} of {len(vmas):,}"
    yield plain(shown, title, width, ("start", *SHARES), meanings=VMAS)


SHARES = ("share", "large")
"""Columns of percentages."""

KINDS: Final = {
    "type": "as RssAnon, RssFile and RssShmem count it",
    "kind": "how it is mapped (page: by a PTE; pmd: by a PMD entry; special: zero page or PFN map; swap, "
    "marker: not mapped)",
    "share": "of all pages in the table",
    "large": "share of the pages that are in folios above order 0",
    "extents": "rows of the trace",
}
ORDERS_NOTE = "A folio has 2^order pages. A folio that several address spaces map counts in each."
ORDERS: Final = {"whole": "every page of the folio is mapped here", "share": "of all mapped pages"}
SHARING_NOTE = "'this' is the address space in which the page is counted."
SHARING: Final = {"share": "of all mapped pages"}
VMAS: Final = {
    "size": "of the VMA, in pages",
    "mapped": "its mapped pages",
    "large": "share of these in folios above order 0",
    "order": "of its largest folio",
}
PROCESSES_NOTE = "A page that several address spaces map counts in each."
PROCESSES: Final = {
    "large": "share of the pages that are in folios above order 0",
    "large anon": "the same share of anonymous memory alone",
    "large file": "the same share of files alone",
}
MOST_PROCESSES = 20
"""Rows of the table of address spaces; JSON has all."""


def _share(pages: str) -> pl.Expr:
    """A column `share`: in percent of the column's sum."""
    return _percent(pl.col(pages), pl.col(pages).sum()).alias("share")


def _large(large: str, pages: str) -> pl.Expr:
    return _percent(pl.col(large), pl.col(pages)).alias("large")


def _percent(part: pl.Expr, whole: pl.Expr) -> pl.Expr:
    """A share as text, `94.9 %`; empty where the whole is 0."""
    shares = pl.when(whole > 0).then(part * 100 / whole)
    return shares.map_elements(lambda share: f"{share:.1f} %", pl.String).fill_null("")


def _processes(trace: Trace, rows: pl.DataFrame, width: int) -> Sheet:
    """Address spaces by what they map, with their shares in large folios."""
    found = inspect.processes(trace, rows)
    kib = trace.meta.page_size // 1024
    shown = found.head(MOST_PROCESSES).select(
        "pid",
        pl.col("comm").alias("process"),
        (pl.col("pages") * kib).cast(pl.Int64).alias("KiB"),
        _large("large", "pages"),
        *(
            _percent(pl.col(f"{name}_large"), pl.col(f"{name}_pages")).alias(f"large {name}")
            for name in ("anon", "file")
        ),
        pl.col("cmdline").alias("command line"),
    )
    if not (found["cmdline"] != "").any():
        shown = shown.drop("command line")
    title = f"Address spaces: the largest {len(shown):,} of {len(found):,}"
    return plain(shown, title, width, (*SHARES, "large anon", "large file"), PROCESSES_NOTE, PROCESSES)
