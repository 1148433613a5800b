# SPDX-License-Identifier: Apache-2.0
"""`scripts/bench_capture` runs: its memory program, its floor, and replay inside it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.capture.processes import needs_root

PROGRAM = Path(__file__).parents[2] / "scripts" / "bench_capture"


@needs_root()
@pytest.mark.skipif(not shutil.which("gcc"), reason="no C compiler")
def test_one_row() -> None:
    command = [str(PROGRAM), "--gib", "1", "--kinds", "pmd", "--runs", "1", "--no-rivals"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 3), done.stderr  # 3: a target was missed, as on a busy machine
    assert "THP, by PMDs" in done.stdout
