# SPDX-License-Identifier: Apache-2.0
"""`replay report`: the comparison as a page or a picture."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from replay.commands import help
from replay.commands.options import Force
from replay.commands.output import load_numpy, note
from replay.errors import UsageError

if TYPE_CHECKING:
    import polars as pl

    from replay.report import page
    from replay.trace.frame import Trace

ENDINGS = (".html", ".svg", ".png")


def report(
    traces: Annotated[
        list[Path],
        typer.Argument(
            help="Traces to show.",
            metavar="TRACE...",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write a page (.html) or a picture (.svg, .png).",
            show_default="TRACE.html",
            rich_help_panel=help.OUTPUT,
        ),
    ] = None,
    what_if: Annotated[
        str,
        typer.Option(
            "--what-if",
            metavar="ORDERS",
            help="Draw curves over these folio orders or sizes, or 'none'. Each takes one more replay.",
            rich_help_panel=help.WHAT_IF_AND_TIME,
        ),
    ] = "0,2,3,4,6,9",
    force: Force = False,
) -> None:
    """Make a page with charts: counts by algorithm and folio order.

    The page is one file that loads nothing else. It shows the names of processes and files. To show it to
    others, make it of traces that 'replay redact' wrote.

    \b
    Examples:
      replay report T.parquet
      replay report T.parquet --what-if none -o t.svg
    """
    path = output or Path(f"{traces[0].stem}.html")
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(f"cannot tell the format of '{path}': let it end in {', '.join(ENDINGS)}")
    load_numpy()
    from replay.report import charts, folio_orders, page
    from replay.support.atomic_file import atomic_file
    from replay.trace import file
    from replay.trace.whatif import parse_orders

    atomic_file(path, force=force)
    charts.check()
    loaded = file.read_all(traces)
    orders = [
        [] if what_if == "none" or trace.meta.what_if else parse_orders(what_if, trace.meta.page_size)
        for trace in loaded
    ]
    if any(orders) and not all(orders):
        # curves must be of the same traces as the counts beside them
        note("note: no curves over folio orders, because a trace is a what-if already")
        orders = [[] for _ in loaded]
    results = folio_orders.by_order(loaded, orders)
    with atomic_file(path, force=force, mode=0o644) as target:
        if path.suffix.lower() == ".html":
            named = [shlex.quote(str(trace)) for trace in traces]
            target.write(page.page(loaded, results, named, _times(loaded, results)).encode())
        else:
            target.write(charts.picture(page.overview(results), path.suffix.lower()[1:]))
    note(f"wrote {path}: {path.stat().st_size / 1024:,.0f} KiB")


def _times(traces: list[Trace], results: pl.DataFrame) -> page.Times | None:
    """Estimated times on the memory as captured, by the calibration of this machine; None without one."""
    import polars as pl

    from replay.cost import calibration
    from replay.errors import ReplayError
    from replay.report import page

    try:
        costs = calibration.read()
    except ReplayError:
        return None
    captured = results.filter(pl.col("order").is_null())
    seconds = calibration.total_seconds(
        (
            (captured.filter(pl.col("trace") == trace.name), calibration.of_rows(trace.frame))
            for trace in traces
        ),
        costs,
    )
    return page.Times(
        seconds,
        costs.algorithm,
        costs.kernel,
        calibration.off(costs),
        f"{calibration.priced(costs)}. The costs leave out {calibration.UNSEEN}.",
    )
