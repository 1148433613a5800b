# SPDX-License-Identifier: Apache-2.0
"""`replay trim`: a part of a trace as a trace."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from replay.commands import help
from replay.commands.naming import check_target
from replay.commands.options import Force
from replay.commands.output import load_numpy, note
from replay.errors import UsageError
from replay.support.text import counted


def trim(
    trace: Annotated[Path, typer.Argument(help="Trace to cut.", metavar="TRACE", show_default=False)],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write the part to this file.",
            show_default=False,
            rich_help_panel=help.OUTPUT,
        ),
    ],
    pid: Annotated[
        list[int] | None,
        typer.Option(metavar="PID", help="Keep this process. Repeatable.", rich_help_panel=help.KEPT),
    ] = None,
    mm: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            help="Keep the address space with this number (column mm). Repeatable.",
            rich_help_panel=help.KEPT,
        ),
    ] = None,
    vma: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Keep VMAs of this name: '[heap]', a path, the last part of a path, or 'anon' for those "
            "without a name. Repeatable.",
            rich_help_panel=help.KEPT,
        ),
    ] = None,
    address: Annotated[
        list[str] | None,
        typer.Option(
            metavar="START-END",
            help="Keep pages in this range, hexadecimal as in /proc/PID/maps. A huge page at the edge stays "
            "whole. Repeatable.",
            rich_help_panel=help.KEPT,
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Keep only some processes, VMAs or addresses of a trace.

    A page is kept if it meets every kind of option given, and any one value of a repeated option. The new
    trace is marked as a part. It counts only the page tables that its pages need. A page that is mapped
    outside the part too counts as shared.

    \b
    Examples:
      replay trim T.parquet --pid 4711 -o one.parquet
      replay trim T.parquet --vma '[heap]' -o heap.parquet
    """
    if not (pid or mm or vma or address):
        raise UsageError("say which part to keep: --pid, --mm, --vma or --address")
    load_numpy()
    from replay.trace import trim as trimming
    from replay.trace.file import read

    ranges = [trimming.parse_range(text) for text in address or []]
    check_target(output, force)
    part = trimming.trim(read(trace), pids=pid or [], mms=mm or [], vmas=vma or [], addresses=ranges)
    part.write(output, force=force)
    spaces = len(part.meta.address_spaces)
    note(
        f"wrote {output}: {counted(spaces, 'address space')}, {len(part.frame):,} extents, "
        f"{part.frame['pages'].sum():,} pages"
    )
    note(f"next: replay run {shlex.quote(str(output))}")
