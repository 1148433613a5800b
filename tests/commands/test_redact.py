# SPDX-License-Identifier: Apache-2.0
"""`replay redact`: every count stays."""

from __future__ import annotations

from pathlib import Path

import replay
from tests.commands.running import CAPTURES, call, line

MANY = CAPTURES / "postgresql-run.parquet"


def test_redact(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    assert call("redact", MANY, out).returncode == 0
    assert "exists" in line(call("redact", MANY, out))
    assert "is the trace itself" in line(call("redact", out, out, "--force"), 2)
    who = ("trace", "pid", "comm")
    before, after = (replay.run(replay.read_trace(path)).drop(who) for path in (MANY, out))
    assert before.equals(after)
    assert "postgres" not in replay.read_trace(out).frame["vma_name"].cast(str).str.join(" ")[0]
