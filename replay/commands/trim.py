# SPDX-License-Identifier: Apache-2.0
"""`replay trim`: a part of a trace as a trace."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from replay.commands.options import Force
from replay.commands.output import load_numpy, note
from replay.errors import UsageError


def trim(
    trace: Annotated[
        Path, typer.Argument(help="A trace.", metavar="TRACE", show_default=False, readable=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The part, a trace.", show_default=False)],
    pid: Annotated[list[int] | None, typer.Option(help="Processes of this PID; repeatable.")] = None,
    mm: Annotated[
        list[int] | None, typer.Option(help="The address space of this number in the trace; repeatable.")
    ] = None,
    vma: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="VMAs of this name: '[heap]', a path or its last part, 'anon' for those without a name; "
            "repeatable.",
        ),
    ] = None,
    address: Annotated[
        list[str] | None,
        typer.Option(
            metavar="START-END",
            help="Pages in this range, hexadecimal as in /proc/PID/maps; repeatable. A huge page that it "
            "cuts is left in whole.",
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Write a part of a trace as a trace: some processes, VMAs or addresses.

    Different options must all hold, repeated ones by any value. The new trace is marked as a part. Of a part
    of a process only the page tables that its pages need are counted, and pages mapped elsewhere as well
    count as shared.
    """
    if not (pid or mm or vma or address):
        raise UsageError("say which part: --pid, --mm, --vma or --address")
    load_numpy()
    from replay.support.atomic_file import atomic_file
    from replay.trace import trim as trimming
    from replay.trace.file import read

    ranges = [trimming.parse_range(text) for text in address or []]
    atomic_file(output, force=force)
    part = trimming.trim(read(trace), pids=pid or [], mms=mm or [], vmas=vma or [], addresses=ranges)
    part.write(output, force=force)
    spaces = len(part.meta.address_spaces)
    note(
        f"wrote {output}: {spaces:,} address space{'' if spaces == 1 else 's'}, {len(part.frame):,} extents, "
        f"{part.frame['pages'].sum():,} pages"
    )
    note(f"next: replay run {shlex.quote(str(output))}")
