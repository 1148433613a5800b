# SPDX-License-Identifier: Apache-2.0
"""`replay trim`: the part it writes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

from tests.commands.running import CAPTURES, call, line


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "heap.parquet"
    done = call("trim", CAPTURES / "numpy.parquet", "--vma", "[heap]", "-o", path)
    assert done.returncode == 0, done.stderr
    assert "note: a part of a trace: VMA [heap]" in call("run", path).stderr
    assert "exists" in line(call("trim", path, "--mm", "0", "-o", path))
    missing = tmp_path / "missing.parquet"
    assert "'replay inspect --json' lists all" in line(call("trim", path, "--pid", "1", "-o", missing))
    assert "say which part" in line(call("trim", path, "-o", missing), 2)
    assert "no range of addresses" in line(call("trim", path, "--address", "12", "-o", missing), 2)
    assert not missing.exists()
