# SPDX-License-Identifier: Apache-2.0
"""`replay run --per mm` on a terminal: which process, how much, one ranked table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from replay.commands import help
from replay.errors import UsageError

if TYPE_CHECKING:
    import polars as pl

    from replay.report.terminal import Sheet
    from replay.trace.frame import Trace

Sort = Annotated[
    str,
    typer.Option(
        metavar="COUNTER",
        help="In a table of --per mm: rank by this counter, or by 'pid'.",
        rich_help_panel=help.OUTPUT,
    ),
]
Top = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
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


def of_pids(results: pl.DataFrame, pids: Sequence[int] | None) -> pl.DataFrame:
    """The rows of some processes, all for None. Raises `UsageError` if there are none."""
    import polars as pl

    if not pids:
        return results
    chosen = results.filter(pl.col("pid").is_in(list(pids)))
    missing = sorted(set(pids) - set(chosen["pid"]))
    if missing:
        raise UsageError(f"no process {missing[0]} in these traces: see 'replay inspect'")
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
    """A ranking for each algorithm named, or for the newest: rows of `compare` for each address space."""
    import polars as pl

    from replay.report import answers, terminal
    from replay.teardown.counters import COUNTERS

    if sort not in (*COUNTERS, "pid"):
        raise UsageError(f"cannot sort by '{sort}': give 'pid' or a counter of 'replay algorithms'")
    cmdlines = {
        (trace.name, mm): space.cmdline
        for trace in traces
        for mm, space in enumerate(trace.meta.address_spaces)
    }
    wanted = [name for name in names or [answers.NEWEST] if name != baseline] or [baseline]
    ranked = []
    for name in wanted:
        rows = compared.filter(pl.col("algorithm") == name)
        rows = rows.sort(sort, descending=sort != "pid", maintain_order=True)
        ranked.append(terminal.ranked(rows, cmdlines, (name, baseline), top, width))
    return ranked
