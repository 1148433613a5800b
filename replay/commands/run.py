# SPDX-License-Identifier: Apache-2.0
"""`replay run`: the teardown algorithms over traces, compared."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from replay.commands.options import Per, Shape
from replay.commands.output import load_numpy, note, show, show_markdown, width
from replay.commands.ranking import Pids, Sort, Top, of_pids, sheets
from replay.commands.whatif import WhatIfOrders, run_what_if
from replay.errors import UsageError

if TYPE_CHECKING:
    import polars as pl

    from replay.trace.frame import Trace


def run(
    traces: Annotated[
        list[Path],
        typer.Argument(
            help="Traces made by capture or record.", metavar="TRACE...", show_default=False, readable=False
        ),
    ],
    algorithms: Annotated[
        list[str] | None,
        typer.Option("-a", "--algorithms", help="Which, separated by commas or repeated; default all."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write all counters: .csv, .json or .parquet.")
    ] = None,
    shape: Annotated[
        Shape | None,
        typer.Option("--format", help="On standard output; default table on a terminal, else csv."),
    ] = None,
    per: Annotated[
        Per | None,
        typer.Option(
            help="What one comparison stands for: all, a trace, an address space; default: total in the "
            "table, else mm."
        ),
    ] = None,
    page_tables: Annotated[
        str | None,
        typer.Option(
            help="Where page-table pages go: 'gather' (x86 up to v6.13) or 'rcu' (arm64, x86 from v6.14, "
            "paravirtualised guests); default by the trace's architecture."
        ),
    ] = None,
    what_if: WhatIfOrders = None,
    sort: Sort = "ptes",
    top: Top = 20,
    pid: Pids = None,
) -> None:
    """Replay the teardown algorithms over traces and compare them with the baseline.

    On a terminal: a table. To a pipe, or with -o: every counter, of each address space or as --per says.
    """
    load_numpy()
    from replay.report import files
    from replay.teardown import variants as known

    if output is not None:
        files.check_target(output, traces)
    if page_tables not in (None, "gather", "rcu"):
        raise UsageError(f"--page-tables is 'gather' or 'rcu', not '{page_tables}'")
    names = None if algorithms is None else names_of(",".join(algorithms))
    known.chosen(names)

    from replay.trace import file

    loaded = file.read_all(traces)
    if shape is None and output is None:
        shape = Shape.TABLE if sys.stdout.isatty() else Shape.CSV
    if what_if is not None:
        run_what_if(loaded, what_if, names, page_tables, output, shape, per)
        return
    results = of_pids(_replay(loaded, names, page_tables), pid)
    _show_results(loaded, results, names, output, shape, per, sort, top)


def names_of(text: str) -> list[str]:
    """Names separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _replay(traces: list[Trace], names: list[str] | None, page_tables: str | None) -> pl.DataFrame:
    import polars as pl

    from replay.teardown import algorithms, replayer

    wanted = None if names is None else [algorithms.BASELINE, *names]
    return pl.concat([replayer.run_checked(trace, wanted, page_tables=page_tables) for trace in traces])


def _show_results(
    traces: list[Trace],
    results: pl.DataFrame,
    names: list[str] | None,
    output: Path | None,
    shape: Shape | None,
    per: Per | None,
    sort: str,
    top: int,
) -> None:
    import polars as pl

    from replay.report import compare, files, notes, terminal
    from replay.teardown.counters import CHECKS

    def compared(per: Per) -> pl.DataFrame:
        keys = {Per.TOTAL: [], Per.TRACE: ["trace"], Per.MM: list(compare.KEYS)}[per]
        rows = results.drop(list(CHECKS)) if per is Per.MM else compare.total(results, keys)
        frame = compare.compare(rows, keys)
        return frame if names is None else frame.filter(pl.col("algorithm").is_in(names))

    if output is not None:
        full = compared(per or Per.MM)
        files.write(full, output)
        note(f"wrote {output}: {len(full):,} rows")
    if shape in (Shape.TABLE, Shape.MD):
        columns = width() if shape is Shape.TABLE else 0
        if per is Per.MM:
            rows = compared(Per.MM)
            found = sheets(traces, rows, names, sort, top, columns)
        else:
            found = [
                terminal.comparison(block, notes.title(block, traces), columns)
                for block in _blocks(compared(per or Per.TOTAL))
            ]
        if shape is Shape.MD:
            show_markdown(found)
        else:
            show(found, columns)
    elif shape is not None:
        sys.stdout.write(files.text(compared(per or Per.MM), files.Format(shape.value)))
    for trace in traces:
        note(*notes.limits(trace.meta))
        if not trace.meta.address_spaces:
            note(f"note: {trace.name} holds no address space")
    shown = results if names is None else results.filter(pl.col("algorithm").is_in(names))
    note(*notes.bugs(shown))


def _blocks(frame: pl.DataFrame) -> list[pl.DataFrame]:
    """The rows of each trace, or all of them."""
    from replay.report import compare

    keys = [name for name in compare.KEYS if name in frame.columns]
    blocks = frame.partition_by(keys, maintain_order=True) if keys else [frame]
    return [block for block in blocks if not block.is_empty()]
