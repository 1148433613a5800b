# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and their texts."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


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
    Path | None, typer.Option("-o", "--output", help="The trace; default replay-COMM-PID-UTC.parquet here.")
]
Force = Annotated[bool, typer.Option("-f", "--force", help="Overwrite an existing trace.")]
Redact = Annotated[
    bool,
    typer.Option(
        "--redact",
        help="Replace names, paths and command lines, renumber PIDs, page frames and cgroups, move addresses "
        "by whole gibibytes, keep the day and the kernel's version numbers; counts stay the same. What is "
        "left: sizes, permissions and flags of VMAs, their places within a gibibyte, what is shared, THP.",
    ),
]
PagemapScan = Annotated[
    bool,
    typer.Option(
        "--pagemap-scan/--no-pagemap-scan",
        help="Use PAGEMAP_SCAN where there is one (without, zero pages of VMAs above 16 GiB are left out).",
    ),
]
