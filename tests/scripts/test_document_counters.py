# SPDX-License-Identifier: Apache-2.0
"""reports/counters.md: a row for each counter, and as the sources are now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from replay.teardown.counters import COUNTED, COUNTERS

ROOT = Path(__file__).parents[2]
ROWS = [
    line.split("|") for line in (ROOT / "reports" / "counters.md").read_text().splitlines() if "|" in line
]


def test_the_page_is_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "document_counters", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_counter_names_kernel_and_reference() -> None:
    rows = {row[1].strip(" `"): row for row in ROWS[2:]}
    assert list(rows) == list(COUNTERS)
    for name in COUNTED:
        kernel, reference = rows[name][2:4]
        assert kernel.strip() and reference.strip(), name
        assert "complete" not in reference, f"the reference counts no {name}"
