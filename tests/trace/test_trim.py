# SPDX-License-Identifier: Apache-2.0
"""Parts of traces: what is in them, and that they are traces."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import replay
from replay.errors import TraceError, UsageError
from replay.report.compare import total
from replay.trace.check import check_frame
from replay.trace.file import read
from replay.trace.trim import parse_range, trim
from tests.teardown.address_spaces import Piece, pieces, trace_of

CAPTURES = Path(__file__).parent.parent.parent / "captures"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(pieces(), min_size=1, max_size=6), st.floats(0, 1), st.floats(0, 1))
def test_any_range_is_a_trace(some: list[Piece], one: float, other: float) -> None:
    trace = trace_of(some, 5)
    if trace.frame.is_empty():
        return
    first, last = trace.frame.select(pl.col("vpn").min(), end=(pl.col("vpn") + pl.col("pages")).max()).row(0)
    places = sorted(first + int(share * (last - first)) for share in (one, other))
    start, end = places[0], places[1] + 1
    entries = [row["vpn"] + n for row in trace.frame.iter_rows(named=True) for n in range(row["pages"])]
    if not any(start <= vpn < end for vpn in entries):
        return
    part = trim(trace, addresses=[(start * 4096, end * 4096)])
    check_frame(part.frame, part.meta, "part")
    kept = {
        row["vpn"] + n: row["kind"] for row in part.frame.iter_rows(named=True) for n in range(row["pages"])
    }
    inside = {vpn for vpn in entries if start <= vpn < end}
    assert inside <= kept.keys()
    assert all(kept[vpn] in ("pmd", "hugetlb") for vpn in kept.keys() - inside)
    replay.run(part, ["mainline"])


def test_processes() -> None:
    trace = read(CAPTURES / "pipeline.parquet")
    pids = [space.pid for space in trace.meta.address_spaces][3:5]
    part = trim(trace, pids=pids)
    check_frame(part.frame, part.meta, "part")
    assert part.meta.part == f"pid {pids[0]}, {pids[1]}"
    counts = ["pid", "algorithm", "rmap_calls", "page_tables", "locks", "release_calls", "pages_freed"]
    whole = replay.run(trace).filter(pl.col("pid").is_in(pids))
    assert replay.run(part).select(counts).equals(whole.select(counts))
    assert trim(part, mms=[1]).meta.part == f"mm 1, pid {pids[0]}, {pids[1]}"


def test_parts_add_up_to_the_whole() -> None:
    trace = read(CAPTURES / "numpy.parquet")
    names = trace.frame["vma_name"].cast(str).unique()
    parts = [trim(trace, vmas=[name or "anon"]) for name in names]
    whole = total(replay.run(trace, ["baseline"])).row(0, named=True)
    for counter in ("ptes", "rmap_calls", "mapcount_atomics"):
        assert sum(total(replay.run(part, ["baseline"]))[counter][0] for part in parts) == whole[counter]
    heap = trim(trace, vmas=["[heap]"])
    assert heap.meta.address_spaces[0].rss_file == 0
    assert heap.meta.address_spaces[0].rss_anon == heap.frame["pages"].sum()
    assert 0 < heap.meta.address_spaces[0].page_tables < trace.meta.address_spaces[0].page_tables


def test_ranges() -> None:
    assert parse_range("7f00a000-7f00b000") == (0x7F00A000, 0x7F00B000)
    assert parse_range("0x10-0x20") == (16, 32)
    for wrong in ("10", "20-10", "x-y", ""):
        with pytest.raises(UsageError):
            parse_range(wrong)
    with pytest.raises(TraceError):
        trim(read(CAPTURES / "numpy.parquet"), vmas=["no such"])
