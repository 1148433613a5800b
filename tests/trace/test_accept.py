# SPDX-License-Identifier: Apache-2.0
"""The compiled rules refuse what the polars check refuses, row by row, and nothing else."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from replay.errors import TraceError
from replay.teardown.replayer import run_checked
from replay.trace.accept import Row, can_follow, is_possible, lacks_first, lacks_last
from replay.trace.check import check_frame
from replay.trace.frame import Trace
from replay.trace.schema import PAGE, PMD
from tests.teardown.address_spaces import Piece, trace_of

ENTRIES = 512
ROW = Row(
    mm=0,
    vma=0,
    vma_start=1024,
    vma_end=4096,
    vma_perms=0,
    vma_flags=0,
    vma_name=0,
    vpn=1024,
    pages=8,
    kind=PAGE,
    pfn=4096,
    uffd_wp=0,
    kpageflags=0,
    mapcount=1,
    own=1,
    dirty=0,
    folio=4096,
    order=3,
    folio_mapped=8,
    folio_mapcount=8,
    memcg=0,
    contiguous=0,
    last=1031,
    size=8,
    begins=False,
    ends=False,
    is_huge_zero=False,
)


def test_one_row() -> None:
    assert is_possible(ROW, ENTRIES, 22)
    impossible: list[dict[str, Any]] = [
        {"kind": -1},
        {"vma_perms": -1},
        {"vma_flags": -1},
        {"pages": 0},
        {"order": 23},
        {"pfn": -1},
        {"vma_end": 1031},
        {"vma_start": 1025},
        {"last": 1536},
        {"folio": 4100},
        {"pfn": 4097},
        {"own": 0},
        {"own": 2},
        {"folio_mapped": 9},
        {"folio_mapcount": 7},
        {"folio_mapcount": 1 << 52},
        {"kpageflags": 1 << 17},
        {"kind": PMD},
    ]
    for wrong in impossible:
        assert not is_possible(ROW._replace(**wrong), ENTRIES, 22), wrong


def test_a_row_and_the_one_before() -> None:
    after = ROW._replace(vpn=1032, last=1039, pfn=8192, folio=8192)
    assert can_follow(after, ROW)
    others: list[dict[str, Any]] = [{"vpn": 1031}, {"vma_perms": 2}, {"vma_end": 4097}, {"vma": 1}]
    for wrong in [*others, {"vma_name": 1}]:
        assert not can_follow(after._replace(**wrong), ROW), wrong
    assert can_follow(after._replace(mm=1, vpn=0), ROW)
    assert not can_follow(after, ROW._replace(mm=1))
    part = ROW._replace(kind=PMD, begins=True)
    assert lacks_last(part) and not lacks_first(part)
    assert not can_follow(after, part)


@pytest.mark.parametrize(
    "wrong",
    [
        {"vpn": pl.col("vpn") + 1},
        {"pages": pl.col("pages") + 1},
        {"order": pl.col("order") + 1},
        {"mapcount": pl.col("mapcount") + 1},
        {"folio_mapped": pl.col("folio_mapped") + 1},
        {"vma_pages": pl.col("vma_pages") // 2},
        {"vma_start": pl.col("vma_start") + 1},
        {"dirty": ~pl.col("dirty")},
        {"memcg": pl.col("memcg") + 1},
        {"kpageflags": pl.col("kpageflags") ^ (1 << 12)},
    ],
)
def test_each_row_changed_in_turn(wrong: dict[str, pl.Expr]) -> None:
    """Both refuse it with the same words, or both take it."""
    some = [
        Piece(count=3, stride=2),
        Piece(order=3, count=20, cut=3),
        Piece(what="pmd"),
        Piece(what="swap", count=2),
        Piece(what="special"),
    ]
    trace = trace_of(some, 3)
    for place in range(len(trace.frame)):
        here = pl.int_range(pl.len()) == place
        changed = {
            name: pl.when(here).then(value).otherwise(pl.col(name)).cast(trace.frame.schema[name])
            for name, value in wrong.items()
        }
        frame = trace.frame.with_columns(**changed)
        try:
            check_frame(frame, trace.meta, "t")
        except TraceError as error:
            with pytest.raises(TraceError) as found:
                run_checked(Trace(frame, trace.meta, "t"), "baseline")
            assert str(found.value) == str(error)
        else:
            run_checked(Trace(frame, trace.meta, "t", checked=frame), "baseline")
