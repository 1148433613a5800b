# SPDX-License-Identifier: Apache-2.0
"""`replay redact`: a trace that can be shown to others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from replay.commands.naming import check_target
from replay.commands.options import Force
from replay.commands.output import load_numpy, note
from replay.errors import UsageError


def redact(
    trace: Annotated[Path, typer.Argument(help="Trace to redact.", metavar="IN", show_default=False)],
    output: Annotated[Path, typer.Argument(help="Trace to write.", metavar="OUT", show_default=False)],
    force: Force = False,
) -> None:
    """Write a trace without names, PIDs, addresses and frames.

    Every count and every what-if stays the same. Names of processes and files, PIDs, page frames and cgroups
    become new numbers. Addresses move by whole GiB. Command lines, the kernel's builder and the time of day
    are left out. What stays: sizes, permissions and flags of VMAs, their places within a GiB, what is shared,
    THP settings, the day and the kernel's version.

    \b
    Example:
      replay redact T.parquet T-redacted.parquet
    """
    load_numpy()
    from replay.trace.file import read
    from replay.trace.redact import redact as redacted

    if output.exists() and output.samefile(trace):
        raise UsageError(f"'{output}' is the trace itself: name another file for the redacted one")
    check_target(output, force)
    redacted(read(trace)).write(output, force=force)
    note(f"wrote {output}: names, PIDs, addresses and page frames are replaced")
