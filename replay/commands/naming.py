# SPDX-License-Identifier: Apache-2.0
"""Where a trace is written: its default name, what must hold before the work, the redacted form."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replay.trace.frame import Trace


def target(path: Path, redact: bool, force: bool) -> Path | None:
    """Where capture writes to: nowhere, if the rows are to be redacted first."""
    from replay.support.atomic_file import atomic_file

    atomic_file(path, force=force)
    return None if redact else path


def write_redacted(trace: Trace | None, path: Path, force: bool) -> None:
    if trace is not None:
        from replay.trace.redact import redact

        redact(trace).write(path, force=force)


def command_name(procfs: Path, pid: int) -> str:
    try:
        return (procfs / str(pid) / "comm").read_text(errors="replace").strip()
    except OSError:
        return "process"


def default_name(comm: str, pid: int, redacted: bool = False) -> Path:
    """The name of a trace in the current folder; of a redacted one it does not say of what."""
    import datetime

    safe = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in comm)
    now = datetime.datetime.now(datetime.UTC)
    if redacted:
        return Path(f"replay-redacted-{now:%Y%m%d}-{os.urandom(3).hex()}.parquet")
    return Path(f"replay-{safe}-{pid}-{now:%Y%m%dT%H%M%SZ}.parquet")
