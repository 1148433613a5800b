# SPDX-License-Identifier: Apache-2.0
"""`replay diff`: what changed between two traces or two results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from replay.commands import help
from replay.commands.output import load_numpy, note, show, width
from replay.support.text import counted


def diff(
    before: Annotated[
        Path,
        typer.Argument(help="A trace, or a file of 'replay run -o'.", metavar="A", show_default=False),
    ],
    after: Annotated[
        Path,
        typer.Argument(help="Another one, compared with A.", metavar="B", show_default=False),
    ],
    algorithms: Annotated[
        list[str] | None,
        typer.Option(
            "-a",
            "--algorithms",
            metavar="NAME,...",
            help="Compare these algorithms only. Repeatable.",
            show_default="all",
            rich_help_panel=help.COMPARED,
        ),
    ] = None,
    fail_above: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COUNTER=P%",
            help="End with status 3 if this counter grows by more than P percent of A in any algorithm. "
            "'locks=1000' is a limit in counts. rss, rss_anon, rss_file, rss_shmem and swap also take "
            "limits; without % these are in bytes. Repeatable.",
            rich_help_panel=help.COMPARED,
        ),
    ] = None,
    top: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Show this many rows of changes: a row is a counter and the algorithms in which it changed "
            "alike.",
            rich_help_panel=help.OUTPUT,
        ),
    ] = 20,
    json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON.", rich_help_panel=help.OUTPUT)
    ] = False,
) -> None:
    """Show what changed between two traces or results.

    Of two traces this shows sizes of memory and kinds of pages first. Counters follow, the largest change in
    percent first.

    \b
    Examples:
      replay diff before.parquet after.parquet -a mainline
      replay diff before.csv after.csv --fail-above rmap_calls=5%

    Two recordings of one workload differ a little. Some counters also depend on other processes, which may
    map a page or use its folio: locks, lruvec_locks, folios_freed, pages_freed,
    swapcache_frees, nr_mapped_atomics and the counters of the deferred split. ptes, rmap_calls,
    mapcount_atomics, release_entries and refcount_atomics depend on them only through the page cache: it
    decides which file pages fault-around maps.
    """
    load_numpy()
    from replay.commands.run import names_of
    from replay.report import diff as report
    from replay.report import terminal
    from replay.teardown import variants as known

    names = None if algorithms is None else names_of(",".join(algorithms))
    known.chosen(names)
    thresholds = [report.parse_threshold(text) for text in fail_above or []]
    one, other = (report.load(path, names) for path in (before, after))
    changes = report.counters(one, other)
    failures = report.exceeded(thresholds, changes, one, other)
    traces = (one.trace, other.trace) if one.trace is not None and other.trace is not None else None
    if json:
        import json as as_json

        document = {
            "before": one.name,
            "after": other.name,
            "counters": changes.to_dicts(),
            "kinds": report.kinds(*traces).to_dicts() if traces else None,
            "memory_bytes": [report.memory(trace.meta) for trace in traces] if traces else None,
            "exceeded": failures,
        }
        typer.echo(as_json.dumps(document, indent=1))
    else:
        columns = width()
        show(list(terminal.difference(one, other, changes, top, columns)), columns)
    if one.spaces != other.spaces:
        note(
            f"note: '{one.name}' holds {counted(one.spaces, 'address space')}, '{other.name}' "
            f"{counted(other.spaces, 'address space')}: their sums are compared"
        )
    note(*(f"above the limit: {line}" for line in failures))
    if failures:
        sys.exit(3)
