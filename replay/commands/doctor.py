# SPDX-License-Identifier: Apache-2.0
"""`replay doctor`: what works on this machine."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def doctor(json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False) -> None:
    """Say what works on this machine, and how to get the rest.

    The exit status is 1 if any line says 'fails'.

    \b
    Example:
      sudo replay doctor
    """
    from replay import doctor as examination

    checks = list(examination.examine())
    if json:
        import json as as_json

        typer.echo(as_json.dumps([check._asdict() for check in checks], indent=1))
    else:
        typer.echo(examination.machine())
        for check in checks:
            typer.echo(f"{check.state:8}{check.name:14}{check.found}")
            if check.remedy and check.state != examination.State.WORKS:
                typer.echo(f"{'':22}-> {check.remedy}")
    if any(check.state == examination.State.FAILS for check in checks):
        sys.exit(1)
