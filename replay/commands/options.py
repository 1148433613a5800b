# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and their texts."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from replay.commands import help


class Shape(StrEnum):
    """How results are shown on standard output."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    MD = "md"


class Per(StrEnum):
    """What one comparison stands for."""

    TOTAL = "total"
    TRACE = "trace"
    MM = "mm"


Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        help="Trace to write. NAME in the default is the name of the process, command or cgroup, 'all', or "
        "'N-processes'. PID is that of a single process, else that of replay.",
        show_default="replay-NAME-PID-UTC.parquet",
        rich_help_panel=help.OUTPUT,
    ),
]
Force = Annotated[
    bool, typer.Option("-f", "--force", help="Overwrite an existing file.", rich_help_panel=help.OUTPUT)
]
Redact = Annotated[
    bool,
    typer.Option(
        "--redact",
        help="Replace names and renumber PIDs, addresses and page frames, as 'replay redact' does. Every "
        "count stays the same.",
        rich_help_panel=help.OUTPUT,
    ),
]
PagemapScan = Annotated[
    bool,
    typer.Option(
        "--pagemap-scan/--no-pagemap-scan",
        help="Use PAGEMAP_SCAN where the kernel has it (v6.7). Without it, the capture leaves out the zero "
        "pages of VMAs that are larger than 16 GiB (with pages of 4 KiB) and hold no other page.",
        show_default="on",
        rich_help_panel=help.HOW,
    ),
]
