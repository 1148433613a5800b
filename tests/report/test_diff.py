# SPDX-License-Identifier: Apache-2.0
"""`replay diff`: traces and results compared, thresholds, and what is neither."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

import replay
from replay.report import diff
from replay.report.compare import total
from tests.commands.running import call

CAPTURES = Path(__file__).parent.parent.parent / "captures"
SMALL, LARGE = CAPTURES / "numpy.parquet", CAPTURES / "numpy-32k.parquet"


def test_traces_and_results_say_the_same(tmp_path: Path) -> None:
    changes = diff.counters(diff.load(SMALL), diff.load(LARGE))
    for ending in ("csv", "json", "parquet"):
        results = []
        for path in (SMALL, LARGE):
            results.append(tmp_path / f"{path.stem}.{ending}")
            assert call("run", path, "-o", results[-1]).returncode == 0
        assert diff.counters(*map(diff.load, results)).equals(changes)
    row = changes.filter((pl.col("algorithm") == "mainline") & (pl.col("counter") == "rmap_calls")).row(
        0, named=True
    )
    counts = [
        total(replay.run(replay.read_trace(path), ["mainline"]))["rmap_calls"][0] for path in (SMALL, LARGE)
    ]
    assert [row["before"], row["after"]] == counts
    assert row["change_pct"] == pytest.approx((counts[1] - counts[0]) / counts[0] * 100)


def test_kinds_of_pages() -> None:
    one, other = (replay.read_trace(path) for path in (SMALL, LARGE))
    kinds = diff.kinds(one, other)
    assert kinds["before"].sum() == one.frame["pages"].sum()
    assert kinds["after"].sum() == other.frame["pages"].sum()
    heap = kinds.filter(pl.col("kind_of_page") == "heap").row(0, named=True)
    assert heap["large_before"] == 0
    assert heap["large_after"] == 24128


def test_absolute_thresholds() -> None:
    changes = diff.counters(diff.load(SMALL, ["v2"]), diff.load(LARGE, ["v2"]))
    sides = diff.load(SMALL, ["v2"]), diff.load(LARGE, ["v2"])
    grown = changes.filter(pl.col("counter") == "ptes")["change"][0]
    assert diff.exceeded([diff.parse_threshold(f"ptes={grown}")], changes, *sides) == []
    [said] = diff.exceeded([diff.parse_threshold(f"ptes={grown - 1}")], changes, *sides)
    assert said == f"ptes of v2 grew by {grown:,}; the limit is {grown - 1:,}"
    [said] = diff.exceeded([diff.parse_threshold("rss=4194304")], changes, *sides)
    assert said.startswith("rss grew by 14,") and said.endswith(" bytes; the limit is 4,194,304")
    [said] = diff.exceeded([diff.parse_threshold("ptes=5%")], changes, *sides)
    assert said == f"ptes of v2 grew by {grown:,} (+5.1 %); the limit is 5 %"
