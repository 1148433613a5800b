# SPDX-License-Identifier: Apache-2.0
"""`replay sweep`: thousands of traces, one part of the result for each."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from replay.commands import help
from replay.commands.output import load_numpy, note
from replay.commands.run import names_of
from replay.errors import UsageError
from replay.support.text import counted

if TYPE_CHECKING:
    from replay.teardown.algorithms import Algorithm

DEFECTIVE = 4
"""Exit status of a sweep that finished, but could not replay some of its traces."""


def sweep(
    traces: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders, globs, or URIs such as s3://bucket/prefix.",
            metavar="TRACE...",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="DIR",
            help="Write the results to this folder, one part for each trace.",
            show_default=False,
            rich_help_panel=help.OUTPUT,
        ),
    ],
    algorithms: Annotated[
        list[str] | None,
        typer.Option(
            "-a",
            "--algorithms",
            metavar="NAME,...",
            help="Algorithms to replay, as for 'replay run'. Repeatable.",
            show_default="all",
            rich_help_panel=help.ALGORITHMS,
        ),
    ] = None,
    page_tables: Annotated[
        str | None,
        typer.Option(
            metavar="gather|rcu",
            help="Free page-table pages through the gather or by RCU, in every algorithm.",
            show_default="as each algorithm does; on arm64 by RCU",
            rich_help_panel=help.ALGORITHMS,
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "-j",
            "--jobs",
            min=1,
            metavar="N",
            help="Run this many worker processes.",
            show_default="one for each CPU",
            rich_help_panel=help.WORKERS,
        ),
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Replay on the Dask cluster of the scheduler at tcp://HOST:PORT. 'local' starts a cluster "
            "here.",
            rich_help_panel=help.WORKERS,
        ),
    ] = None,
) -> None:
    """Replay many traces in parallel.

    A sweep that is started again skips the traces that are done, where trace and options are unchanged. A
    trace that cannot be replayed becomes a row of DIR/failures.csv, and the exit status is 4.

    \b
    Examples:
      replay sweep /var/traces -o parts --jobs 8
      replay run parts
    """
    if page_tables not in (None, "gather", "rcu"):
        raise UsageError(f"--page-tables is 'gather' or 'rcu', not '{page_tables}'")
    load_numpy()
    from replay.fleet import sources
    from replay.fleet import sweep as fleet
    from replay.teardown.variants import chosen, encoded

    for text in algorithms or []:
        names_of(text)
    replayed = chosen(algorithms)
    wanted = None if algorithms is None else [encoded(algorithm) for algorithm in replayed]
    found = sources.find(traces)
    began = time.monotonic()
    with _progress(len(found)) as report:
        swept = fleet.sweep(
            found,
            output,
            fleet.options_text(wanted, page_tables),
            jobs=jobs or os.cpu_count() or 1,
            dask=dask,
            progress=report,
        )
    seconds = max(time.monotonic() - began, 1e-9)
    if swept.skipped == len(found):
        parts = f"all {swept.skipped:,} parts are" if swept.skipped > 1 else "the part is"
        note(f"nothing to do: {parts} there")
    else:
        skipped = f", {swept.skipped:,} were finished before" if swept.skipped else ""
        note(
            f"wrote {counted(swept.traces, 'part')} to '{output}'{skipped}: {swept.extents:,} extents, "
            f"{swept.extents / seconds:,.0f} per second"
        )
    for uri, error in list(swept.failures.items())[:5]:
        note(f"not replayed: {error if uri in error else f'{uri}: {error}'}")
    if swept.failures:
        note(f"not replayed: {counted(len(swept.failures), 'trace')}, listed in '{output / fleet.FAILURES}'")
        sys.exit(DEFECTIVE)
    note(f"next: replay run {shlex.quote(str(output))}{_against(replayed)}")


def _against(replayed: Sequence[Algorithm]) -> str:
    """The option that 'replay run' needs to compare these algorithms, with a space before it."""
    from replay.teardown.algorithms import BASELINE

    names = [algorithm.name for algorithm in replayed]
    return "" if BASELINE in names else f" --baseline {shlex.quote(names[0])}"


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal; yields a function of (traces done, extents so far), or None without a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    began = time.monotonic()
    columns = (TextColumn("traces"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, rate="")

        def report(done: int, extents: int) -> None:
            rate = f"{extents / (time.monotonic() - began):,.0f} extents per second"
            bar.update(task, completed=done, rate=rate)

        yield report
