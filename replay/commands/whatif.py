# SPDX-License-Identifier: Apache-2.0
"""`replay whatif`: a trace as if its memory had come in folios of other sizes; also `run --what-if`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from replay.commands import help
from replay.commands.naming import check_target
from replay.commands.options import Force, Per, Shape
from replay.commands.output import load_numpy, note, show, show_markdown, width
from replay.errors import UsageError

if TYPE_CHECKING:
    from replay.teardown.algorithms import Algorithm
    from replay.trace.frame import Trace
    from replay.trace.whatif import WhatIf

WhatIfOrders = Annotated[
    str | None,
    typer.Option(
        "--what-if",
        metavar="ORDERS",
        help="Replay also as if private anonymous memory had come in folios of these orders or sizes, one "
        "after the other: 0,3,9 or 32k,2m. See 'replay whatif'.",
        rich_help_panel=help.WHAT_IF_AND_TIME,
    ),
]


def whatif(
    trace: Annotated[
        Path,
        typer.Argument(help="Trace as captured.", metavar="TRACE", show_default=False),
    ],
    order: Annotated[
        str | None,
        typer.Option(
            metavar="N[,N...]",
            help="Folio orders or sizes: 3, 64k, 2m. Several are enabled together, as in the kernel: the "
            "largest that fits is taken. 0 means single pages. Needed unless --policy is collapse.",
            rich_help_panel=help.MEMORY,
        ),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            metavar="fault|collapse",
            help="'fault': each block with a page becomes a whole folio, as mTHP and THP faults make it. "
            "'collapse': only blocks that are full enough become huge pages, as khugepaged makes them.",
            rich_help_panel=help.MEMORY,
        ),
    ] = "fault",
    max_ptes_none: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            help="With 'collapse': this many entries of a block may be empty or map the zero page.",
            show_default="all but one, as in the kernel: 511 with pages of 4 KiB",
            rich_help_panel=help.MEMORY,
        ),
    ] = None,
    file: Annotated[
        bool,
        typer.Option(
            "--file",
            help="Put the page cache in folios too, aligned in the file. The largest order is used. File "
            "offsets are unknown: the first mapping of a file is taken to begin at offset 0, unless its "
            "large folios show where it begins. The same pages stay mapped.",
            rich_help_panel=help.MEMORY,
        ),
    ] = False,
    by_ptes: Annotated[
        bool,
        typer.Option(
            "--by-ptes",
            help="Map folios of PMD size by PTEs, not by a PMD entry.",
            rich_help_panel=help.MEMORY,
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Trace to write.",
            show_default="TRACE-whatif-ORDERS.parquet",
            rich_help_panel=help.OUTPUT,
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the comparison as JSON.", rich_help_panel=help.OUTPUT)
    ] = False,
    force: Force = False,
) -> None:
    """Rewrite a trace as if memory had come in other folios.

    Each naturally aligned block that fits its VMA becomes one folio. Pages that others map too, KSM pages,
    pages in the swap cache, copies of file pages, mlocked VMAs and VMAs with VM_NOHUGEPAGE stay as they are.
    The new trace is marked as a what-if. The command also prints the memory that the folios add, and the
    counts before and after.

    The model does not know how a VMA grew: a heap that grows in small steps gets fewer folios than fit it in
    the end. Nor does it know which parts of a folio were given back, or whether memory was too fragmented.

    \b
    Examples:
      replay whatif T.parquet --order 64k
      replay whatif T.parquet --order 2,4,9 -o large.parquet
      replay whatif T.parquet --policy collapse --max-ptes-none 64
    """
    load_numpy()
    from replay.trace.file import read
    from replay.trace.whatif import Policy, parse_orders, pmd_order, what_if

    if policy not in list(Policy):
        raise UsageError(f"--policy is 'fault' or 'collapse', not '{policy}'")
    chosen = Policy(policy)
    if max_ptes_none is not None and chosen is Policy.FAULT:
        raise UsageError("--max-ptes-none goes with --policy collapse: a fault has no threshold")
    if order is None and chosen is Policy.FAULT:
        raise UsageError("name the folio size: --order 3, or --order 64k")
    path = output or Path(f"{trace.stem}-whatif-{(order or 'collapse').replace(',', '-')}.parquet")
    check_target(path, force)
    before = read(trace)
    page_size = before.meta.page_size
    orders = [pmd_order(page_size)] if order is None else parse_orders(order, page_size)
    found = what_if(
        before, orders, policy=chosen, max_ptes_none=max_ptes_none, by_ptes=by_ptes, page_cache=file
    )
    found.trace.write(path, force=force)
    _say(before, found, json)
    note(f"wrote {path}: {len(found.trace.frame):,} extents")


def _say(before: Trace, found: WhatIf, json: bool) -> None:
    """The comparison of a trace with its what-if, on standard output."""
    import json as as_json

    import polars as pl

    from replay.report import folio_orders, terminal
    from replay.teardown import replayer

    name = "what-if"
    results = pl.concat(
        replayer.run_checked(trace).select(
            pl.lit(what).alias("what_if"),
            pl.lit(number, pl.Int64).alias("order"),
            pl.lit(added, pl.Int64).alias("pages_added"),
            pl.lit(folio_orders.resident(trace), pl.Int64).alias("resident_pages"),
            pl.all(),
        )
        for what, number, added, trace in (
            (folio_orders.CAPTURED, None, 0, before),
            (name, max(found.folios, default=0), found.added, found.trace),
        )
    )
    frame = folio_orders.compared(results, [])
    if json:
        typer.echo(as_json.dumps(folio_orders.document(before, found, frame), indent=1))
        return
    note(*folio_orders.summary(before, found))
    columns = width()
    show([terminal.before_and_after(frame, name, columns)], columns)


def run_what_if(
    traces: Sequence[Trace],
    sizes: str,
    algorithms: list[Algorithm],
    names: list[str] | None,
    baseline: str,
    output: Path | None,
    shape: Shape | None,
    per: Per | None,
    csv_safe: bool,
) -> None:
    """`replay run --what-if`: algorithm by folio order.

    algorithms: to replay, with the baseline; names: those to show, all if None; csv_safe: as of `files.safe`.
    """
    import polars as pl

    from replay.report import files, folio_orders, notes, terminal
    from replay.trace.whatif import parse_orders

    orders = [parse_orders(sizes, trace.meta.page_size) for trace in traces]
    results = folio_orders.by_order(traces, orders, algorithms)
    keys = {None: [], Per.TOTAL: [], Per.TRACE: ["trace"], Per.MM: ["trace", "mm", "pid", "comm"]}[per]
    frame = folio_orders.compared(results, keys, baseline)
    if csv_safe:
        frame = files.safe(frame)
    if output is not None:
        files.write(frame, output)
        note(f"wrote {output}: {len(frame):,} rows")
    if shape in (Shape.TABLE, Shape.MD):
        if keys:
            raise UsageError("--what-if shows totals in a table: leave --per out, or ask for --format csv")
        columns = width() if shape is Shape.TABLE else 0
        chosen = frame if names is None else frame.filter(pl.col("algorithm").is_in(names))
        title = notes.title(frame.head(1), [trace.name for trace in traces])
        pages = {trace.meta.page_size for trace in traces}
        found = list(terminal.by_order(chosen, frame, title, max(pages), columns, baseline))
        if shape is Shape.MD:
            show_markdown(found)
        else:
            show(found, columns)
    elif shape is not None:
        sys.stdout.write(files.text(frame, files.Format(shape.value)))
    for trace in traces:
        note(*notes.limits(trace.meta))
    note(
        "note: a what-if is a model of the memory: counts are exact for the folios it makes; 'replay whatif "
        "--help' says what it cannot see"
    )
