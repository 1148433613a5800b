# SPDX-License-Identifier: Apache-2.0
"""`replay calibrate`: what the operations of a teardown cost on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from replay.commands.output import load_numpy, note, progress, show, width


def calibrate(
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write the costs to this file.",
            show_default="one file for each kernel in the user's data folder",
        ),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, metavar="N", help="Measure each process this many times.")] = 6,
    algorithm: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The algorithm that this kernel runs.",
            show_default="what the kernel's functions and configuration show",
        ),
    ] = None,
) -> None:
    """Measure what teardown operations cost on this machine.

    This starts processes with known memory, captures and kills each, and measures the time until the kernel
    has torn it down. From these times it fits a cost in ns for each operation, which 'replay run --time'
    uses. It needs root, and three or four minutes on a quiet machine. Meanwhile it changes the THP settings.

    \b
    Examples:
      replay calibrate
      replay run --time T.parquet
    """
    load_numpy()
    import polars as pl

    from replay.cost import calibrate as measuring
    from replay.cost import calibration as kept
    from replay.report import terminal

    measuring.check_rights()
    path = kept.target(output)
    with progress("exits") as report:
        found = measuring.calibrate(runs=runs, algorithm=algorithm, progress=report)
    result = found.calibration
    # first of all: where nobody reads the table, the command ends while it prints it
    kept.write(result, path)
    table = pl.DataFrame(
        {
            "operation": list(result.costs),
            "ns": [f"{cost * 1e9:,.1f}" for cost in result.costs.values()],
            "from": [f"{cost * 1e9:,.1f}" for cost in result.low.values()],
            "to": [f"{cost * 1e9:,.1f}" for cost in result.high.values()],
        }
    )
    columns = width()
    title = f"Cost of one operation of '{result.algorithm}' on {result.kernel} (5th to 95th percentile)"
    show([terminal.plain(table, title, columns, right=("ns", "from", "to"))], columns)
    left_out = [name for name in kept.FEATURES if name not in result.costs]
    if left_out:
        note(f"no cost of its own, because it always came together with others: {', '.join(left_out)}")
    note(
        f"error over {result.held_out} exits that the fit did not use: {100 * result.error_median:.1f} % "
        f"in the median, {100 * result.error_high:.1f} % at the 90th percentile"
    )
    note(f"the costs leave out: {kept.UNSEEN}")
    note(f"wrote {path}")
    note("next: replay run --time TRACE")
