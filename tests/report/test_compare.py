# SPDX-License-Identifier: Apache-2.0
"""Results compared: against any algorithm, never in silence without one."""

from __future__ import annotations

import polars as pl
import pytest

from replay.errors import UsageError
from replay.report.compare import compare, percent, total
from replay.teardown.counters import COUNTERS
from replay.teardown.replayer import run
from tests.teardown.address_spaces import Piece, trace_of

RESULTS = run(trace_of([Piece(count=30), Piece(order=3, count=80)], 3))


@pytest.mark.parametrize("baseline", ["baseline", "v6.12"])
def test_every_counter_says_what_is_avoided(baseline: str):
    compared = compare(RESULTS, baseline=baseline)
    base = RESULTS.filter(pl.col("algorithm") == baseline)
    for name in COUNTERS:
        avoided = base[name][0] - RESULTS[name]
        assert compared[f"{name}_avoided"].to_list() == avoided.to_list()
    assert set(compared.filter(pl.col("algorithm") == baseline)["locks_avoided_pct"]) == {0.0}


def test_without_the_baseline_there_is_nothing_to_compare():
    without = RESULTS.filter(pl.col("algorithm") != "baseline")
    with pytest.raises(UsageError, match="no rows of 'baseline'"):
        compare(without)
    with pytest.raises(UsageError, match="no rows of 'mine'"):
        compare(total(RESULTS), (), "mine")
    other = RESULTS.filter(pl.col("algorithm") == "v2").with_columns(mm=pl.lit(7, pl.UInt32))
    with pytest.raises(UsageError, match="no rows"):
        compare(pl.concat([RESULTS, other]))


def test_compare_against_nothing():
    frame = pl.DataFrame(
        [
            {
                "trace": "t",
                "mm": 0,
                "pid": 1,
                "comm": "c",
                "algorithm": name,
                **dict.fromkeys(COUNTERS, count),
            }
            for name, count in (("baseline", 0), ("v2", 3))
        ]
    )
    rows = compare(frame).select("locks_avoided", "locks_avoided_pct").rows()
    assert rows == [(0, 0.0), (-3, None)]
    doubled = total(pl.concat([frame, frame]))
    assert doubled.select("address_spaces", "locks", "gather_pages_peak").rows() == [(2, 0, 0), (2, 6, 3)]


@pytest.mark.parametrize(
    ("count", "base", "told"),
    [
        (110, 100, "+10.0"),
        (0, 9, "-100.0"),
        (38, 90_609, "-99.96"),
        (99_999, 100_000, "-0.001"),
        (3, 1, "+200.0"),
    ],
)
def test_no_change_is_rounded_away(count: int, base: int, told: str) -> None:
    assert percent(count, base) == told
