# SPDX-License-Identifier: Apache-2.0
"""`replay redact`: a trace that can be shown to others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from replay.commands.options import Force
from replay.commands.output import load_numpy, note


def redact(
    trace: Annotated[Path, typer.Argument(help="A trace.", metavar="IN", show_default=False, readable=False)],
    output: Annotated[Path, typer.Argument(help="The redacted one.", metavar="OUT", show_default=False)],
    force: Force = False,
) -> None:
    """Write a trace without what it tells of its user: every count and every what-if stays the same.

    Names of processes and files, PIDs and page frames become numbers, addresses are moved, command lines, the
    kernel's builder and the time of day are left out. Sizes, permissions and the kernel's version stay.
    """
    load_numpy()
    from replay.support.atomic_file import atomic_file
    from replay.trace.file import read
    from replay.trace.redact import redact as redacted

    atomic_file(output, force=force)
    redacted(read(trace)).write(output, force=force)
    note(f"wrote {output}: without names, PIDs, addresses and page frames of its user")
