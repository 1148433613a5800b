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
            help="What can be changed of an algorithm: meaning, unit, the kernel's name for it.",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List the algorithms with their sources, and what is not modelled."""
    from replay.report import catalogue

    if json:
        typer.echo(catalogue.as_json(parameters))
    else:
        typer.echo(catalogue.parameters_as_text() if parameters else catalogue.as_text())
