# SPDX-License-Identifier: Apache-2.0
"""`replay record` as a user calls it."""

from __future__ import annotations

from pathlib import Path

import pytest

import replay
from tests.capture.processes import needs_root
from tests.commands.running import call


def test_a_command_is_needed() -> None:
    done = call("record")
    assert done.returncode == 2 and "missing argument" in done.stderr


@needs_root()
@pytest.mark.parametrize("redact", [False, True])
def test_a_command_is_recorded_and_keeps_its_status(redact: bool, tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    done = call("record", *(["--redact"] if redact else []), "-o", out, "--", "sh", "-c", "echo said; exit 7")
    assert (done.returncode, done.stdout) == (7, "said\n"), done.stderr
    assert f"next: replay run {out}" in done.stderr
    [space] = replay.read_trace(out).meta.address_spaces
    assert (space.comm == "sh") is not redact
