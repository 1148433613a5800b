# SPDX-License-Identifier: Apache-2.0
"""Results compared: against any algorithm, never in silence without one."""

from __future__ import annotations

import dataclasses

import polars as pl
import pytest

from replay.errors import UsageError
from replay.report import files, notes
from replay.report.compare import compare, equal, total
from replay.teardown.counters import COUNTERS
from replay.teardown.replayer import run
from replay.trace.frame import Trace
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


def test_algorithms_that_count_alike_are_named():
    assert ["v1", "v2"] in equal(RESULTS)
    assert "v1 and v2 count alike" in notes.alike(RESULTS)[-1] or any(
        "v1 and v2 count alike" in line for line in notes.alike(RESULTS)
    )


def test_the_kernel_of_the_trace_is_named_and_a_newer_one_too():
    meta = trace_of([], 1).meta
    assert notes.running([dataclasses.replace(meta, kernel_release="6.18.3-1")]) == {"mainline": "6.18.3-1"}
    lines = notes.kernels([dataclasses.replace(meta, kernel_release="9.1.0")], ["mainline"])
    assert len(lines) == 2
    assert "newer than any kernel that was traced (v7.3)" in lines[1]
    assert notes.kernels([meta], ["mainline"]) == []


def test_names_that_are_formulas_are_made_text():
    frame = pl.DataFrame({"comm": ["=1+1", "+x", "-2", "@a", "bash", "a=b"], "ptes": [1, 2, 3, 4, 5, 6]})
    assert files.safe(frame)["comm"].to_list() == ["'=1+1", "'+x", "'-2", "'@a", "bash", "a=b"]


def test_address_spaces_that_share_anonymous_pages_are_named():
    one = trace_of([Piece(count=5, others=1)], 1)
    frame = pl.concat([one.frame, one.frame.with_columns(mm=pl.lit(1, pl.UInt32), pid=pl.lit(2, pl.UInt32))])
    meta = dataclasses.replace(one.meta, address_spaces=one.meta.address_spaces * 2)
    assert "--together" in notes.shared_anon(Trace(frame, meta, "two"))[0]
    assert notes.shared_anon(one) == []
    assert notes.shared_anon(Trace(frame, dataclasses.replace(meta, mode="exit"), "two")) == []
    apart = frame.with_columns(pfn=pl.col("pfn") + pl.col("mm").cast(pl.Int64) * 100)
    assert notes.shared_anon(Trace(apart, meta, "apart")) == []
