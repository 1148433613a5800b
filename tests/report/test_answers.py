# SPDX-License-Identifier: Apache-2.0
"""The answer in sentences: its figures are those of the results."""

from __future__ import annotations

import replay
from replay.report import answers, folio_orders
from replay.report.compare import total
from tests.commands.running import CAPTURES


def test_the_answer() -> None:
    trace = replay.read_trace(CAPTURES / "numpy-32k.parquet")
    frame = folio_orders.compared(folio_orders.by_order([trace], [[0, 4]]), [])
    said = answers.sentences([trace], frame)
    counts = {row["algorithm"]: row for row in total(replay.run(trace)).iter_rows(named=True)}
    assert said[0].startswith("Tearing down this address space (288 MiB resident")
    change = (1 - counts["mainline"]["rmap_calls"] / counts["baseline"]["rmap_calls"]) * 100
    assert f"Mainline makes {change:.1f} % fewer rmap removals" in said[1]
    assert "of order 4" in said[3]
