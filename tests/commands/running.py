# SPDX-License-Identifier: Apache-2.0
"""The commands as a user calls them: through a pipe, and on a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

from tests.teardown.address_spaces import Piece, trace_of

REPLAY = (sys.executable, "-m", "replay.cli")

CAPTURES = Path(__file__).parents[2] / "captures"


def call(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*REPLAY, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False, **options
    )


def on_terminal(*arguments: object, columns: int = 100) -> str:
    """What the command shows on a terminal."""
    here, there = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "TERM": "dumb", "NO_COLOR": "1"}
    process = subprocess.Popen(
        [*REPLAY, *map(str, arguments)], stdout=there, stderr=subprocess.DEVNULL, env=environment
    )
    os.close(there)
    shown = b""
    while True:
        try:
            part = os.read(here, 1 << 16)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(here)
    assert process.wait(60) == 0
    return shown.decode().replace("\r\n", "\n")


def line(done: subprocess.CompletedProcess[str], status: int = 1) -> str:
    """The one line of an error."""
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    [message] = done.stderr.splitlines()
    assert message.startswith("replay: ")
    return message


def small_trace(path: Path) -> Path:
    """A trace of ten folios of order 3 and thirty pages, written to `path`."""
    return trace_of([Piece(order=3, count=80), Piece(count=30)], 9).write(path)
