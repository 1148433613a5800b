# SPDX-License-Identifier: Apache-2.0
"""`replay validate`: the replay against the running kernel."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from replay.commands.output import load_numpy, note, progress, show, width
from replay.commands.run import names_of
from replay.errors import UsageError

VERDICT_COLUMNS = (
    *("workload", "pid", "comm", "spaces", "exact", "predicted", "observed", "prefix", "causes", "calls"),
)


def validate(
    command: Annotated[
        list[str] | None,
        typer.Argument(help="A command; without one, built-in workloads.", metavar="[-- CMD ARGS...]"),
    ] = None,
    only: Annotated[str | None, typer.Option(help="Built-in workloads, separated by commas.")] = None,
    drain: Annotated[
        bool | None,
        typer.Option(
            help="Empty the LRU batches of all CPUs before each exit.",
            show_default="only for kernels whose exit_mmap() empties those of its CPU: before v6.16",
        ),
    ] = None,
    algorithm: Annotated[
        str | None,
        typer.Option(
            help="What this kernel does, a name or definition as of 'run -a'; default: by the kernel's own "
            "functions and configuration."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Every exit with every difference, as JSON.")] = False,
    every: Annotated[
        bool, typer.Option("--every", help="A row for each exit, not for each workload.")
    ] = False,
) -> None:
    """Check the replay against the running kernel: the folios that it frees at each exit, in order.

    Where the kernel has kprobe events, the counts of its calls are compared as well. Exit status 3 if it
    frees other folios, or in another order, or makes more or fewer calls, without a known cause.
    """
    if command and only is not None:
        raise UsageError("--only chooses among the built-in workloads: name them or a command")
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
        show([terminal.plain(table, "Folios freed at exit", columns)], columns)
    for name, why in result.notes.items():
        note(f"{name}: {why}")
    for missed, missing in result.missed.items():
        note(f"not compared: {missing:,} {missed.value}")
    if result.no_calls:
        note(f"call counts were not compared: {result.no_calls}")
    note(verdicts.conclusion(result))
    if not result.agrees:
        sys.exit(3)
