# SPDX-License-Identifier: Apache-2.0
"""`replay algorithms`: the algorithms, the counters, the limits of the model."""

from __future__ import annotations

from typing import Annotated

import typer


def algorithms(
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List the algorithms with their sources, and what is not modelled."""
    from replay.report import catalogue

    typer.echo(catalogue.as_json() if json else catalogue.as_text())
