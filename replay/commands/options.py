# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and their texts."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

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


def output_option(named: str) -> Any:
    """The option for the trace that is written. named: what its default name says."""
    return typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        help=f"Trace to write. {named}",
        show_default="replay-NAME-PID-UTC.parquet",
        rich_help_panel=help.OUTPUT,
    )


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
        help="Use PAGEMAP_SCAN where the kernel has it (v6.7). Without it, zero pages are not captured in a "
        "VMA that maps nothing else and is larger than 16 GiB (base pages of 4 KiB).",
        show_default="on",
        rich_help_panel=help.HOW,
    ),
]
