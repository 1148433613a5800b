# SPDX-License-Identifier: Apache-2.0
"""A report as one HTML page. It needs no script, loads nothing, and has a table behind every picture."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any, Final, NamedTuple

import polars as pl

from replay.report import address_map, answers, charts, folio_orders, inspect, notes
from replay.report.compare import percent
from replay.support.text import printable
from replay.teardown.algorithms import ALGORITHMS, BASELINE, NOT_MODELLED
from replay.teardown.counters import COUNTERS
from replay.trace.frame import Trace

SHOWN: Final = {
    "rmap_calls": "rmap removals",
    "atomics": "atomic operations",
    "locks": "lock acquisitions",
    "release_calls": "release calls",
    "gather_pages_peak": "gather memory at the peak, batch pages",
}
"""The counters of the bars, with their titles."""

CURVES: Final = ("rmap_calls", "atomics", "locks", "release_calls")
DRAWN: Final = (BASELINE, "v2", "folio-batch", "mainline")
"""The algorithms whose curves are drawn. The table has all."""

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

MOST_ROWS: Final = 25
"""The most rows of a table: browsers cannot open a page of 150,000 rows."""
MOST_MAPS: Final = 4
"""How many address spaces have a map: the largest ones."""


class Times(NamedTuple):
    """Estimated teardown times: seconds of each algorithm, and what is known of the costs behind them.

    algorithm: the one under which the costs were measured. kernel: its release. error: a sentence on how far
    estimates were off. limits: sentences on what has a cost and what the costs leave out.
    """

    seconds: dict[str, float]
    algorithm: str
    kernel: str
    error: str
    limits: str


def page(
    traces: Sequence[Trace], results: pl.DataFrame, paths: Sequence[str], times: Times | None = None
) -> str:
    """The page.

    results: of `folio_orders.by_order`; paths: of the traces, for the commands that the page names. times:
    estimates to show, if there are any.
    """
    total = folio_orders.compared(results, [])
    sections = [
        _head(traces, total),
        _comparison(total),
        _by_order(total, traces),
        _time(times),
        _orders(traces),
        _maps(traces),
        _processes(results, traces, paths),
        _origin(traces),
        _limits(),
    ]
    style = resources.files("replay.report").joinpath("page.css").read_text()
    title = _text(f"replay: {_names(traces)}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # the browser may load nothing, even if a name in the trace contains HTML
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<link rel="icon" href="data:,">'
        f"<title>{title}</title><style>{style}</style></head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body></html>\n"
    )


def overview(results: pl.DataFrame) -> Any:
    """The comparison as one picture."""
    total = folio_orders.compared(results, [])
    pictures = [_bars(total, name, title) for name, title in SHOWN.items()]
    if _has_orders(total):
        pictures.append(_curve(total, "rmap_calls", "rmap removals by folio order (what-if)"))
    return charts.side_by_side(pictures)


# ------------------------------------------------------------------ parts of the page


def _head(traces: Sequence[Trace], total: pl.DataFrame) -> str:
    base = total.filter(
        (pl.col("algorithm") == BASELINE) & (pl.col("what_if") == folio_orders.CAPTURED)
    ).to_dicts()[0]
    rows = pl.concat([inspect.classified(trace).select("kind", "pages", "order") for trace in traces])
    share = inspect.in_large_folios(rows)["share_pct"].to_list() or [0.0]
    rss = sum(folio_orders.resident(trace) * trace.meta.page_size for trace in traces)
    cards = {
        "address spaces": f"{base['address_spaces']:,}",
        "resident": folio_orders.size(rss),
        "PTEs torn down": f"{base['ptes']:,}",
        "PMD mappings": f"{base['pmd_mappings']:,}",
        "in large folios": f"{share[0]:.1f} %",
    }
    warnings = [line.removeprefix("note: ") for trace in traces for line in notes.limits(trace.meta)]
    said = " ".join(answers.sentences(traces, total))
    return "".join(
        [
            f"<h1>{_text(_names(traces))}</h1>",
            '<p class="soft">What the teardown of this memory costs the kernel, by algorithm. Exact counts, '
            "replayed over page tables of real processes.</p>",
            *(f'<p class="warning">{_text(line)}</p>' for line in dict.fromkeys(warnings)),
            f'<p class="answer">{_text(said).replace(" %", "&nbsp;%")}</p>',
            '<div class="cards">',
            *(f"<div><b>{_text(value)}</b><span>{_text(name)}</span></div>" for name, value in cards.items()),
            "</div>",
        ]
    )


def _comparison(total: pl.DataFrame) -> str:
    captured = total.filter(pl.col("what_if") == folio_orders.CAPTURED)
    pictures = [charts.svg(_bars(total, name, title)) for name, title in SHOWN.items()]
    columns = [*dict.fromkeys([*SHOWN, "release_entries", "deferred_split_queued"])]
    rows = []
    for row in captured.iter_rows(named=True):
        base = captured.filter(pl.col("algorithm") == BASELINE).to_dicts()[0]
        rows.append([_text(row["algorithm"]), *(_count(row[name], base[name]) for name in columns)])
    table = _table(["algorithm", *(name.replace("_", " ") for name in columns)], rows)
    meanings = "; ".join(f"{name.replace('_', ' ')}: {COUNTERS[name]}" for name in columns)
    return (
        f"<h2>Algorithms, compared with {BASELINE}</h2>"
        '<p class="soft">All address spaces together.</p>'
        + f'<div class="charts">{"".join(f"<div>{picture}</div>" for picture in pictures)}</div>'
        + table
        + f'<p class="soft">{_text(meanings)}.</p>'
    )


def _by_order(total: pl.DataFrame, traces: Sequence[Trace]) -> str:
    if not _has_orders(total):
        return ""
    page_size = max(trace.meta.page_size for trace in traces)
    memory = total.filter(pl.col("algorithm") == BASELINE)
    added = [
        {
            "order": row["order"],
            "mib": row["pages_added"] * page_size / (1 << 20),
            "label": f"{row['pages_added'] * page_size / (1 << 20):,.0f}",
        }
        for row in memory.filter(pl.col("order").is_not_null()).iter_rows(named=True)
    ]
    pictures = [charts.svg(_curve(total, name)) for name in CURVES]
    pictures.append(charts.svg(charts.memory(pl.DataFrame(added), "memory added, MiB")))
    forms = total["what_if"].unique(maintain_order=True).to_list()
    found = folio_orders.memory(total)
    tables = []
    for name in CURVES:
        grid = folio_orders.grid(total, name)
        base = grid.filter(pl.col("algorithm") == BASELINE)[folio_orders.CAPTURED][0]
        rows = [
            [_text(row["algorithm"]), *(_count(row[form], base) for form in forms)]
            for row in grid.iter_rows(named=True)
        ]
        title = f"{SHOWN[name]}, compared with {BASELINE} on the memory as captured"
        tables.append(f"<h3>{_text(title)}</h3>" + _table(["algorithm", *forms], rows))
    sizes = [
        [_text(form), *(_text(folio_orders.size(pages * page_size)) for pages in reversed(found[form]))]
        for form in forms
    ]
    return (
        "<h2>What if anonymous memory came in larger folios</h2>"
        "<p>This is a model of the memory; the counts of its folios are exact. Each naturally aligned block "
        "that fits its VMA and holds a page becomes one folio. At PMD size a PMD maps it. Shared pages, "
        "copies of file pages, mlocked VMAs and VMAs with VM_NOHUGEPAGE stay as they are. A real kernel "
        "makes somewhat fewer large folios: while a heap grows, the block at its end does not fit yet.</p>"
        f'<div class="charts">{"".join(f"<div>{picture}</div>" for picture in pictures)}</div>'
        + _details(
            "Tables by folio order",
            "".join(tables) + "<h3>Memory</h3>" + _table(["memory", "resident", "added"], sizes),
        )
    )


def _time(times: Times | None) -> str:
    if times is None:
        return ""
    base = times.seconds.get(BASELINE, 0.0)
    rows = [
        [
            _text(name),
            f"{1000 * seconds:,.1f} ms",
            f"{_percent(seconds, base)} %" if base and name != BASELINE else "",
            "this kernel's" if name == times.algorithm else "extrapolated",
        ]
        for name, seconds in times.seconds.items()
    ]
    return (
        "<h2>Estimated teardown time</h2>"
        f"<p>By the calibration of the machine that wrote this page (Linux {_text(times.kernel)}). "
        f"{_text(times.error)}. Costs were measured for the algorithm that its kernel runs; for the others "
        "they are extrapolated.</p>"
        + _table(["algorithm", "time", "against the baseline", "costs"], rows)
        + f'<p class="soft">An estimate, not a count. {_text(times.limits)}</p>'
    )


def _orders(traces: Sequence[Trace]) -> str:
    frames = []
    for trace in traces:
        found = inspect.orders(inspect.classified(trace))
        mib = pl.col("pages").cast(pl.Float64) * trace.meta.page_size / (1 << 20)
        frames.append(found.with_columns(mib=mib))
    found = (
        pl.concat(frames)
        .group_by("type", "kind", "order")
        .agg(pl.col("folios", "whole", "pages", "mib").sum())
        .sort("type", "order", "kind")
    )
    if found.is_empty():
        return ""
    bars = found.group_by("type", "order").agg(pl.col("mib").sum().round(2)).sort("order", "type")
    rows = [
        [
            _text(row["type"]),
            _text(row["kind"]),
            f"{row['order']}",
            f"{row['folios']:,}",
            f"{row['whole']:,}",
            _text(folio_orders.size(int(row["mib"] * (1 << 20)))),
        ]
        for row in found.iter_rows(named=True)
    ]
    heads = ["type", "mapped by", "order", "folios", "mapped in full", "memory"]
    return (
        "<h2>Folio orders</h2>"
        '<p class="soft">Mapped memory by the order of the folio that it lies in; a folio that several '
        "address spaces map counts in each.</p>"
        f'<div class="wide">{charts.svg(charts.orders(bars, "mapped memory by folio order, MiB"))}</div>'
        + _details("Table of folio orders", _table(heads, rows, texts=2))
    )


def _maps(traces: Sequence[Trace]) -> str:
    sizes = [
        (int(pages), number, mm)
        for number, trace in enumerate(traces)
        for mm, pages in trace.frame.group_by("mm").agg(pl.col("pages").cast(pl.UInt64).sum()).iter_rows()
    ]
    largest = sorted(sizes, key=lambda size: (-size[0], *size[1:]))[:MOST_MAPS]
    if not largest:
        return ""
    parts = [
        "<h2>Address spaces</h2>",
        '<p class="soft">A cell for each 2 MiB with pages, in address order, 128 MiB in a row; a dotted line '
        "stands for a longer gap. The colour shows the folio order of most pages of the cell, the pattern "
        "what they are, and the height how many are there. Point at a cell to see its VMAs.</p>",
        _legend(),
    ]
    for _, number, mm in largest:
        trace = traces[number]
        space = trace.meta.address_spaces[mm]
        drawn = address_map.draw(trace, mm)
        parts.append(f"<h3>{_text(f'{space.comm} ({space.pid})')}</h3>{_map(drawn, space.comm)}")
        if drawn.left_out:
            parts.append(f'<p class="soft">{drawn.left_out:,} cells at higher addresses are not drawn.</p>')
        names = {number: text.partition(":")[0] for number, text in address_map.PATTERNS.items()}
        rows = [
            [_text(names[row["what"]]), f"{row['order']}", f"{row['cells']:,}", f"{row['pages']:,}"]
            for row in drawn.table.iter_rows(named=True)
        ]
        heads = ["most of the cell", "order", "cells", "pages in them"]
        vmas = inspect.vmas(inspect.classified(trace).filter(pl.col("mm") == mm))
        parts.append(
            _details(f"Tables of {space.comm} ({space.pid})", _table(heads, rows) + _vmas(vmas, trace))
        )
    if len(sizes) > len(largest):
        parts.append(
            f'<p class="soft">The {len(largest)} with most pages, of {len(sizes):,} address spaces.</p>'
        )
    return "".join(parts)


def _vmas(vmas: pl.DataFrame, trace: Trace) -> str:
    shown = vmas.sort("mapped", descending=True, maintain_order=True).head(MOST_ROWS)
    page = trace.meta.page_size
    rows = [
        [
            _text(f"{row['vma_start'] * page:x}"),
            _text(row["vma_perms"]),
            _text(folio_orders.size(row["mapped"] * page)),
            f"{row['large'] / row['mapped'] * 100:.1f} %" if row["mapped"] else "",
            f"{row['largest_order']}",
            _text(row["vma_name"] or "anonymous"),
        ]
        for row in shown.iter_rows(named=True)
    ]
    heads = ["start", "perms", "mapped", "in large folios", "largest order", "name"]
    text = (
        f'<p class="soft">The largest {len(shown):,} of {len(vmas):,} VMAs: '
        "<code>replay inspect --vmas</code> shows more.</p>"
    )
    return text + _table(heads, rows, texts=2, last_long=True)


def _processes(results: pl.DataFrame, traces: Sequence[Trace], paths: Sequence[str]) -> str:
    captured = results.filter(pl.col("what_if") == folio_orders.CAPTURED)
    keys = ["trace", "mm", "pid", "comm"]
    wide = captured.filter(pl.col("algorithm") == BASELINE).sort("ptes", descending=True, maintain_order=True)
    if len(wide) < 2:
        return ""
    newest = captured.filter(pl.col("algorithm") == answers.NEWEST).select(
        *keys, new_calls="rmap_calls", new_atomics="atomics", new_locks="locks"
    )
    cmdlines = {
        (trace.name, mm): space.cmdline
        for trace in traces
        for mm, space in enumerate(trace.meta.address_spaces)
    }
    shown = wide.head(MOST_ROWS).join(newest, on=keys, how="left", maintain_order="left")
    rows = [
        [
            f"{row['pid']}",
            _text(row["comm"])
            + (f"<small>{_text(line[:120])}</small>" if (line := cmdlines[row["trace"], row["mm"]]) else ""),
            f"{row['ptes']:,}",
            f"{row['rmap_calls']:,}",
            _count(row["new_calls"], row["rmap_calls"]),
            _count(row["new_atomics"], row["atomics"]),
            _count(row["new_locks"], row["locks"]),
        ]
        for row in shown.iter_rows(named=True)
    ]
    counted = [f"{what}, {answers.NEWEST}" for what in ("rmap removals", "atomics", "locks")]
    heads = ["pid", "process", "PTEs", "rmap removals, baseline", *counted]
    command = f"replay run {' '.join(paths)} --per mm -o all.csv"
    return (
        "<h2>Processes</h2>"
        + _table(heads, rows, texts=2)
        + f'<p class="soft">The {len(shown):,} with most PTEs, of {len(wide):,}. Changes are against the '
        f"baseline. Every address space, algorithm and counter: <code>{_text(command)}</code></p>"
    )


def _origin(traces: Sequence[Trace]) -> str:
    parts = ["<h2>Where this comes from</h2>"]
    for trace in traces[:MOST_ROWS]:
        meta = trace.meta
        sizes = [
            f"{name.removeprefix('hugepages-').removesuffix('/enabled')} {value}"
            for name, value in meta.thp.items()
            if name.endswith("/enabled") and value != "never"
        ]
        held = "not held still" if meta.held == "none" else f"held still by {meta.held}"
        kernel = f"Linux {meta.kernel_release or 'unknown'}, {meta.architecture}"
        facts = {
            "trace": trace.name,
            "kernel": f"{kernel}, pages of {meta.page_size:,} bytes",
            "taken": f"{meta.captured_at or 'unknown'}, mode {meta.mode}, {held}",
            "THP": f"{meta.thp.get('enabled', 'unknown')}; folio sizes {', '.join(sizes) or 'all never'}",
            "certainty": f"PMD mappings: {meta.pmd}; mapcounts: {meta.mapcounts}; dirty bits of "
            f"PTEs: {meta.dirty}; entries changed while read: {meta.changed_entries:,}",
            "what-if": meta.what_if,
            "part": meta.part,
            "made by": f"replay {meta.tool_version}" if meta.tool_version else "",
        }
        rows = [[_text(name), _text(value)] for name, value in facts.items() if value]
        parts.append(_table([], rows, texts=2, last_long=True))
    if len(traces) > MOST_ROWS:
        parts.append(f'<p class="soft">And {len(traces) - MOST_ROWS:,} traces more.</p>')
    sources = [[_text(a.name), _text(a.title), _text(a.source)] for a in ALGORITHMS.values()]
    table = _table(["name", "what it is", "source"], sources, texts=3)
    parts.append(_details("Sources of the algorithms", table))
    return "".join(parts)


def _limits() -> str:
    items = "".join(f"<li>{_text(limit)}</li>" for limit in NOT_MODELLED)
    return f'<h2>What is not modelled</h2><ul class="soft">{items}</ul>'


# ------------------------------------------------------------------ pictures


def _bars(total: pl.DataFrame, counter: str, title: str) -> Any:
    captured = total.filter(pl.col("what_if") == folio_orders.CAPTURED)
    base = captured.filter(pl.col("algorithm") == BASELINE)[counter][0]
    rows = captured.select("algorithm", count=counter).with_columns(
        label=pl.col("count").map_elements(lambda count: _label(count, base), pl.String)
    )
    return charts.bars(rows, title)


def _label(count: int, base: int) -> str:
    if count == base or not base:
        return f"{count:,}"
    return f"{count:,} ({_percent(count, base)} %)"


def _curve(total: pl.DataFrame, counter: str, title: str = "") -> Any:
    rows = total.filter(pl.col("order").is_not_null() & pl.col("algorithm").is_in(DRAWN))
    ticks = rows["order"].unique().sort().to_list()
    return charts.curves(rows.select("algorithm", "order", count=counter), title or SHOWN[counter], ticks)


def _has_orders(total: pl.DataFrame) -> bool:
    return total["order"].is_not_null().any()


def _map(drawn: address_map.Map, comm: str) -> str:
    size = address_map.PIXELS
    data = base64.b64encode(drawn.png).decode()
    places = "".join(
        f'<rect x="{place.x * size}" y="{place.y * size}" width="{place.cells * size - 1}" '
        f'height="{size - 1}"><title>{_text(place.text)}</title></rect>'
        for place in drawn.regions[:MOST_PLACES]
    )
    label = _text(f"map of the address space of {comm}")
    image = f'<image width="{drawn.width}" height="{drawn.height}" href="data:image/png;base64,{data}"/>'
    return (
        f'<div class="map"><svg viewBox="0 0 {drawn.width} {drawn.height}" role="img" aria-label="{label}">'
        f"{image}{places}</svg></div>"
    )


MOST_PLACES: Final = 1500
"""How many places of a map have a name to point at: those at the lowest addresses."""


def _legend() -> str:
    orders = [f"order {number}" for number in range(len(address_map.COLOURS))]
    orders[0], orders[-1] = "order 0, single pages", f"{orders[-1]} and above"
    colours = [
        f'<li><i style="background:{colour}"></i>{text}</li>'
        for colour, text in zip(address_map.COLOURS, orders, strict=True)
    ]
    shapes = {
        address_map.PRIVATE: '<rect width="8" height="8"/>',
        address_map.SHARED: '<path d="M0 0h2v2h2v-2h2v2h2v2h-2v2h2v2h-2v-2h-2v2h-2v-2h-2v-2h2v-2h-2z"/>',
        address_map.FILE: '<path d="M0 0h8v1.6h-8zM0 3.2h8v1.6h-8zM0 6.4h8v1.6h-8z"/>',
        address_map.SWAP: '<path d="M0 0h8v8h-8zM1.5 1.5v5h5v-5z" fill-rule="evenodd"/>',
        address_map.OTHER: '<path d="M1 1h2v2h-2zM5 1h2v2h-2zM1 5h2v2h-2zM5 5h2v2h-2z"/>',
    }
    patterns = [
        f'<li><svg viewBox="0 0 8 8" fill="currentColor">{shapes[number]}</svg>{_text(text)}</li>'
        for number, text in address_map.PATTERNS.items()
    ]
    return f'<ul class="legend">{"".join(colours)}</ul><ul class="legend">{"".join(patterns)}</ul>'


# ------------------------------------------------------------------ HTML


def _text(value: object) -> str:
    """Text as it is, whatever it holds."""
    return html.escape(printable(str(value)))


def _count(count: int | None, base: int) -> str:
    """A count, and below it its change against another count."""
    if count is None:
        return ""
    if count == base or not base:
        return f"{count:,}"
    kind = "more" if count > base else "less"
    return f'{count:,}<small class="{kind}">{_percent(count, base)} %</small>'


def _percent(count: float, base: float) -> str:
    """A change as `percent` says it, a large one without decimals; ±0 for none."""
    change = (count - base) / base * 100
    if abs(change) < SMALLEST:
        return "±0"
    return f"{change:+,.0f}" if abs(change) >= 1000 else percent(count, base)


SMALLEST: Final = 5e-7
"""Changes in percent below this come from the rounding of times."""


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1, last_long: bool = False
) -> str:
    """A table. Cells are HTML.

    texts: how many columns from the left are text; last_long: whether the last column is long text.
    """

    def kind(number: int, of: int) -> str:
        if last_long and number == of - 1:
            return ' class="text long"'
        return ' class="text"' if number < texts else ""

    head = "".join(f"<th{kind(n, len(heads))}>{_text(name)}</th>" for n, name in enumerate(heads))
    body = "".join(
        "<tr>" + "".join(f"<td{kind(n, len(row))}>{cell}</td>" for n, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    top = f"<thead><tr>{head}</tr></thead>" if heads else ""
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def _details(title: str, content: str) -> str:
    return f"<details><summary>{_text(title)}</summary>{content}</details>"


def _names(traces: Sequence[Trace]) -> str:
    names = [trace.name for trace in traces]
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
