# SPDX-License-Identifier: Apache-2.0
"""`replay validate`: the replay against the running kernel."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from replay.commands import help
from replay.commands.output import load_numpy, note, progress, show, width
from replay.commands.run import names_of
from replay.errors import UsageError

VERDICT_COLUMNS = (
    *("workload", "pid", "comm", "spaces", "exact", "predicted", "observed", "prefix", "causes", "calls"),
)

MEANINGS = {
    "exact": "exits that freed exactly the predicted folios in order",
    "predicted": "folios that the replay frees",
    "observed": "folios that the kernel has freed",
    "prefix": "folios before the first difference",
    "causes": "why folios differ, and how many",
}


def validate(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            help="A command and its arguments. Without one, the built-in workloads run.",
            metavar="[-- CMD ARGS...]",
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Run these built-in workloads only.",
            show_default="all",
            rich_help_panel=help.COMPARED,
        ),
    ] = None,
    drain: Annotated[
        bool | None,
        typer.Option(
            help="Empty the LRU batches of all CPUs before each exit.",
            show_default="on for kernels before v6.16, whose exit_mmap() empties the batches of its own CPU",
            rich_help_panel=help.COMPARED,
        ),
    ] = None,
    algorithm: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Compare the kernel with this algorithm, named as for 'replay run -a'.",
            show_default="what the kernel's functions and configuration show",
            rich_help_panel=help.COMPARED,
        ),
    ] = None,
    json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print every exit with every difference as JSON.", rich_help_panel=help.OUTPUT
        ),
    ] = False,
    every: Annotated[
        bool,
        typer.Option(
            "--every", help="Print a row for each exit, not for each workload.", rich_help_panel=help.OUTPUT
        ),
    ] = False,
) -> None:
    """Check the replay against exits of the running kernel.

    It needs root. For each exit this compares the folios that the kernel frees, in order, with those that the
    replay predicts. Where the kernel has kprobe events, it compares the numbers of calls too. The exit status
    is 3 if anything differs without a known cause.

    \b
    Examples:
      replay validate
      replay validate -- make -j2
    """
    if command and only is not None:
        raise UsageError("--only names built-in workloads: leave it out when you give a command")
    load_numpy()
    from replay.report import terminal
    from replay.validate import verdicts
    from replay.validate.exits import validate as observe

    with progress("exits") as report:
        seen = 0

        def count(_: Any) -> None:
            nonlocal seen
            seen += 1
            if report:
                report(seen, None)

        result = observe(
            command,
            only=None if only is None else names_of(only),
            drain=drain,
            algorithm=algorithm,
            progress=count,
        )
    if json:
        typer.echo(verdicts.as_json(result))
    else:
        table = verdicts.frame(result) if every else verdicts.summary(result)
        shown = [name for name in VERDICT_COLUMNS if name in table.columns]
        if result.no_calls:
            shown.remove("calls")
        table = table.select(shown)
        columns = width()
        show([terminal.plain(table, "Folios freed at exit", columns, meanings=MEANINGS)], columns)
    for name, why in result.notes.items():
        note(f"{name}: {why}")
    for missed, missing in result.missed.items():
        note(f"not compared: {missing:,} {missed.value}")
    if result.no_calls:
        note(f"call counts were not compared: {result.no_calls}")
    note(verdicts.conclusion(result))
    if not result.agrees:
        sys.exit(3)
