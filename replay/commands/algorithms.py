# SPDX-License-Identifier: Apache-2.0
"""`replay algorithms`: the algorithms, their parameters, the counters, the limits of the model."""

from __future__ import annotations

from typing import Annotated

import typer


def algorithms(
    parameters: Annotated[
        bool,
        typer.Option(
            "--parameters",
            help="List the parameters that -a can change: meaning, unit, the kernel's name.",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """List algorithms, counters and the limits of the model.

    \b
    Examples:
      replay algorithms
      replay algorithms --parameters
    """
    from replay.report import catalogue

    if json:
        typer.echo(catalogue.as_json(parameters))
    else:
        typer.echo(catalogue.parameters_as_text() if parameters else catalogue.as_text())
