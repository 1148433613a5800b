# SPDX-License-Identifier: Apache-2.0
"""`replay whatif`: a trace as if its memory had come in folios of other sizes; also `run --what-if`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
        help="Compare by folio order too: replay the memory as captured, and as if private anonymous memory "
        "had come in folios of each of these orders or sizes (0,2,3,4,9 or 16k,64k,2m). See 'replay whatif'.",
    ),
]


def whatif(
    trace: Annotated[
        Path, typer.Argument(help="A trace as captured.", metavar="TRACE", show_default=False, readable=False)
    ],
    order: Annotated[
        str | None,
        typer.Option(
            metavar="N[,N...]",
            help="Folio orders or sizes: 3, 64k, 2m. Several are enabled together, as in the kernel: the "
            "largest that fits comes first. 0 is single pages. Needed, but for --policy collapse.",
        ),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            help="'fault': a block with any page comes as a whole folio, as mTHP and THP faults do. "
            "'collapse': khugepaged makes huge pages of blocks that are full enough; all else stays."
        ),
    ] = "fault",
    max_ptes_none: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            help="Of 'collapse': how many entries of a block may be empty or map the zero page. Default as "
            "the kernel's: all but one (511).",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        bool,
        typer.Option(
            "--file",
            help="The page cache too comes in folios, of the largest of the orders, aligned in their files, "
            "which are taken to be mapped from their beginning. Which pages are mapped stays.",
        ),
    ] = False,
    by_ptes: Annotated[
        bool, typer.Option("--by-ptes", help="Map folios of PMD size by PTEs, not by a PMD entry.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The new trace; default TRACE-whatif-ORDERS.parquet here."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The comparison as JSON.")] = False,
    force: Force = False,
) -> None:
    """Rewrite a trace as if its memory had come in folios of other sizes.

    A naturally aligned block that fits its VMA becomes one folio. Pages that others map too, KSM, swap cache,
    copies of file pages, mlocked VMAs and those with VM_NOHUGEPAGE stay as they are. The new trace is a trace
    like any other, marked as a what-if. Shown beside it: the memory that the folios add, and the counts
    before and after.

    Not seen: a VMA that grows in steps (the heap) lets in fewer folios than fit it in the end; parts of a
    folio that were given back; memory too fragmented for the size.
    """
    load_numpy()
    from replay.support.atomic_file import atomic_file
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
    atomic_file(path, force=force)
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
) -> None:
    """`replay run --what-if`: algorithm by folio order.

    algorithms: to replay, with the baseline; names: those to show, all if None.
    """
    import polars as pl

    from replay.report import files, folio_orders, notes, terminal
    from replay.trace.whatif import parse_orders

    orders = [parse_orders(sizes, trace.meta.page_size) for trace in traces]
    results = folio_orders.by_order(traces, orders, algorithms)
    keys = {None: [], Per.TOTAL: [], Per.TRACE: ["trace"], Per.MM: ["trace", "mm", "pid", "comm"]}[per]
    frame = folio_orders.compared(results, keys, baseline)
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
