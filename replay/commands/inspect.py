# SPDX-License-Identifier: Apache-2.0
"""`replay inspect`: what a trace maps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from replay.commands.output import load_numpy, note, show, show_markdown, width
from replay.errors import UsageError
from replay.support.text import printable


def inspect(
    trace: Annotated[Path, typer.Argument(help="Trace to show.", metavar="TRACE", show_default=False)],
    vmas: Annotated[int, typer.Option(min=0, metavar="N", help="List this many VMAs.")] = 20,
    shape: Annotated[
        str,
        typer.Option("--format", metavar="table|md", help="Print tables for a terminal, or in Markdown."),
    ] = "table",
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show what a trace maps: folio orders, sharing, VMAs.

    The first line says how much of the memory is in large folios. Tables of kinds, address spaces, orders,
    sharing and VMAs follow.

    \b
    Examples:
      replay inspect T.parquet
      replay inspect T.parquet --vmas 50 --format md
    """
    if shape not in ("table", "md"):
        raise UsageError(f"--format is 'table' or 'md', not '{shape}'")
    load_numpy()
    from replay.report import inspect as report
    from replay.report import notes, terminal
    from replay.trace.file import read

    loaded = read(trace, partial=True)
    rows = report.classified(loaded)
    if json:
        typer.echo(report.as_json(loaded, rows))
        return
    for line in report.header(loaded, rows):
        typer.echo(printable(line))
    if shape == "md":
        show_markdown(terminal.inspection(loaded, rows, vmas, 0))
        return
    columns = width()
    show(list(terminal.inspection(loaded, rows, vmas, columns)), columns)
    note(*notes.noticed(loaded))
