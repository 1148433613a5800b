# SPDX-License-Identifier: Apache-2.0
"""`replay run --per mm` on a terminal: address spaces in one table, the largest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from replay.commands import help
from replay.errors import ReplayError, UsageError

if TYPE_CHECKING:
    import polars as pl

    from replay.report.terminal import Sheet
    from replay.trace.frame import Trace

MOST: Final = 20
"""Address spaces that a table shows."""

Sort = Annotated[
    str | None,
    typer.Option(
        metavar="COUNTER",
        show_default="ptes",
        help="In a table of --per mm: rank by this counter, or by 'pid'.",
        rich_help_panel=help.OUTPUT,
    ),
]
Top = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        show_default=str(MOST),
        help="In a table of --per mm: show this many address spaces.",
        rich_help_panel=help.OUTPUT,
    ),
]
Pids = Annotated[
    list[int] | None,
    typer.Option(
        "--pid",
        metavar="PID",
        help="Count this process only. Repeatable.",
        rich_help_panel=help.COMPARED,
    ),
]


def ranking(sort: str | None, top: int | None, *, table: bool) -> tuple[str, int]:
    """By what and how many address spaces are shown. Raises `UsageError` where no such table is shown."""
    from replay.teardown.counters import COUNTERS

    if (sort or top) and not table:
        raise UsageError(
            "--sort and --top rank the table of --per mm, and without it they change nothing: add --per mm "
            "--format table"
        )
    if sort not in (None, *COUNTERS, "pid"):
        raise UsageError(f"cannot sort by '{sort}': give 'pid' or a counter of 'replay algorithms'")
    return sort or "ptes", top or MOST


def of_pids(results: pl.DataFrame, pids: Sequence[int] | None) -> pl.DataFrame:
    """The rows of some processes; all rows for None. Raises `ReplayError` if a process is not there."""
    import polars as pl

    if not pids:
        return results
    chosen = results.filter(pl.col("pid").is_in(list(pids)))
    missing = sorted(set(pids) - set(chosen["pid"]))
    if missing:
        raise ReplayError(f"no process {missing[0]} in these traces: 'replay inspect --json' lists all")
    return chosen


def sheets(
    traces: Sequence[Trace],
    compared: pl.DataFrame,
    names: list[str] | None,
    baseline: str,
    sort: str,
    top: int,
    width: int,
) -> list[Sheet]:
    """One table for each algorithm that is named, else for the newest one that the results have.

    compared: rows of `compare` for each address space.
    """
    import polars as pl

    from replay.report import answers, terminal

    cmdlines = {
        (trace.name, mm): space.cmdline
        for trace in traces
        for mm, space in enumerate(trace.meta.address_spaces)
    }
    there = compared["algorithm"].unique(maintain_order=True).to_list()
    newest = answers.NEWEST if answers.NEWEST in there else there[-1]
    wanted = [name for name in names or [newest] if name != baseline] or [baseline]
    ranked = []
    for name in wanted:
        rows = compared.filter(pl.col("algorithm") == name)
        rows = rows.sort(sort, descending=sort != "pid", maintain_order=True)
        ranked.append(terminal.ranked(rows, cmdlines, (name, baseline), sort, top, width))
    return ranked
