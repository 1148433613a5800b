# SPDX-License-Identifier: Apache-2.0
"""`replay inspect`: what a trace maps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from replay.commands.output import load_numpy, note, show, width
from replay.support.text import printable


def inspect(
    trace: Annotated[
        Path, typer.Argument(help="A trace.", metavar="TRACE", show_default=False, readable=False)
    ],
    vmas: Annotated[int, typer.Option(help="How many VMAs to list.", min=0)] = 20,
    json: Annotated[bool, typer.Option("--json", help="All of it as JSON.")] = False,
) -> None:
    """Show what a trace maps: kinds, folio orders, sharing, VMAs."""
    load_numpy()
    from replay.report import inspect as report
    from replay.report import notes, terminal
    from replay.trace.file import read

    loaded = read(trace, partial=True)
    rows = report.classified(loaded)
    if json:
        typer.echo(report.as_json(loaded, rows))
        return
    for line in report.header(loaded):
        typer.echo(printable(line))
    columns = width()
    show(list(terminal.inspection(loaded, rows, vmas, columns)), columns)
    note(*notes.noticed(loaded))
