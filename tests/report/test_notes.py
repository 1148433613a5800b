# SPDX-License-Identifier: Apache-2.0
"""Notes beside the figures: each is there where it applies, and not elsewhere."""

from __future__ import annotations

import dataclasses

import polars as pl

from replay.report import notes
from replay.report.compare import equal
from replay.teardown.replayer import run
from replay.trace.frame import Trace
from tests.teardown.address_spaces import Piece, trace_of

RESULTS = run(trace_of([Piece(count=30), Piece(order=3, count=80)], 3))


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
    between = notes.kernels([dataclasses.replace(meta, kernel_release="6.15.2")], ["mainline"])
    assert between[1].startswith("note: nobody traced Linux 6.15.2")


def test_a_long_list_of_address_spaces_is_a_count():
    meta = trace_of([], 1).meta
    many = ", ".join(map(str, range(0, 13900, 100)))
    for part, told in (
        (f"mm {many}", "139 of its address spaces"),
        ("pid 3, 4, mm 5", "pid 3, 4, mm 5"),
        (f"pid {many}, VMA [heap]", "139 of its processes, VMA [heap]"),
    ):
        assert notes.limits(dataclasses.replace(meta, part=part)) == [f"note: a part of a trace: {told}"]


def test_address_spaces_that_share_anonymous_pages_are_named():
    one = trace_of([Piece(count=5, others=1)], 1)
    frame = pl.concat([one.frame, one.frame.with_columns(mm=pl.lit(1, pl.UInt32), pid=pl.lit(2, pl.UInt32))])
    meta = dataclasses.replace(one.meta, address_spaces=one.meta.address_spaces * 2)
    assert "--together" in notes.shared_anon(Trace(frame, meta, "two"))[0]
    assert notes.shared_anon(one) == []
    assert notes.shared_anon(Trace(frame, dataclasses.replace(meta, mode="exit"), "two")) == []
    apart = frame.with_columns(pfn=pl.col("pfn") + pl.col("mm").cast(pl.Int64) * 100)
    assert notes.shared_anon(Trace(apart, meta, "apart")) == []
