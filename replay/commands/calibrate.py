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
            "-o", "--output", help="Where to keep it [default: the user's data folder, per kernel]."
        ),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="How often each process is measured.")] = 3,
    algorithm: Annotated[
        str | None, typer.Option(help="The algorithm that this kernel runs [default: the kernel is asked].")
    ] = None,
) -> None:
    """Measure what teardown operations cost on this machine.

    Starts processes made for it, captures each, kills it, and takes the time until the kernel says that it is
    gone. From these it fits a cost for each operation. Then 'replay run --time' estimates teardown times. It
    takes a minute or two, needs root, and changes the switches of folio sizes for that time. Run it on a
    quiet machine.
    """
    load_numpy()
    import polars as pl

    from replay.cost import calibrate as measuring
    from replay.cost import calibration as kept
    from replay.report import terminal

    with progress("exits") as report:
        found = measuring.calibrate(runs=runs, algorithm=algorithm, progress=report)
    result = found.calibration
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
        note(f"not told apart from the others by these exits: {', '.join(left_out)}")
    note(
        f"{result.held_out} mixtures that the fit did not see: error {100 * result.error_median:.1f} % "
        f"in the median, {100 * result.error_high:.1f} % at the 90th percentile"
    )
    note(f"not seen: {kept.UNSEEN}")
    path = output or kept.path_here()
    kept.write(result, path)
    note(f"wrote {path}")
    note("next: replay run --time TRACE")
