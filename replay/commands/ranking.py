# SPDX-License-Identifier: Apache-2.0
"""`replay run --per mm` on a terminal: which process, how much, one ranked table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from replay.errors import UsageError

if TYPE_CHECKING:
    import polars as pl

    from replay.report.terminal import Sheet
    from replay.trace.frame import Trace

Sort = Annotated[
    str,
    typer.Option(metavar="COUNTER", help="With --per mm in a table: by which counter to rank, or 'pid'."),
]
Top = Annotated[int, typer.Option(min=1, help="With --per mm in a table: how many address spaces to show.")]
Pids = Annotated[
    list[int] | None,
    typer.Option("--pid", help="Only processes of this PID; may be repeated. For all kinds of results."),
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
