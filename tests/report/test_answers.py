# SPDX-License-Identifier: Apache-2.0
"""The answer in sentences: its figures are those of the results."""

from __future__ import annotations

import polars as pl

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
    large = folio_orders.by_order([trace], [[4, 9]], ["baseline", "mainline"])
    [*_, what_if] = answers.sentences([trace], folio_orders.compared(large, []))
    calls = {
        row["order"]: row["rmap_calls"]
        for row in total(large, ["order"]).filter(pl.col("algorithm") == "mainline").iter_rows(named=True)
    }
    fewer = [100 - calls[order] / calls[None] * 100 for order in (4, 9)]
    assert what_if.startswith(
        "What-if, compared with mainline on the memory as captured: "
        f"order 4 makes {fewer[0]:.1f} % fewer rmap removals and takes "
    )
    assert f" more memory. Order 9 makes {fewer[1]:.1f} % fewer rmap removals" in what_if


def test_a_small_rest_is_not_rounded_away() -> None:
    assert answers._change(38, 90_609) == "99.96 % fewer"
    assert answers._change(90_610, 90_609) == "0.001 % more"
    assert answers._memory(0, 5) == "no more memory"
