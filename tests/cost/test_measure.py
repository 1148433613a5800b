# SPDX-License-Identifier: Apache-2.0
"""Exits are timed for real."""

from __future__ import annotations

from pathlib import Path

import replay
from replay.cost.measure import Case, empty_seconds, measure
from tests.capture.processes import needs_root


@needs_root()
def test_a_larger_process_takes_longer(tmp_path: Path) -> None:
    path = tmp_path / "pages"
    path.write_bytes(bytes(16 << 20))
    empty = empty_seconds(path, 3)
    assert 0 < empty < 1
    cases = [
        Case("a", (("small", 16),)),
        Case("b", (("small", 128),)),
        Case("c", (("file", 16), ("forked", 16))),
    ]
    exits = measure(cases, path, 2, empty)
    assert exits[0].least < exits[1].least
    pages = [replay.run(found.trace, "baseline")["ptes"][0] for found in exits]
    # a file may come in huge pages that a PMD maps: only the forked part is PTEs for certain
    assert pages[1] - pages[0] >= 112 << 8 and pages[2] > 16 << 8
