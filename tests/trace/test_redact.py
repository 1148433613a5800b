# SPDX-License-Identifier: Apache-2.0
"""A redacted trace says nothing of names and places, and counts the same."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import polars as pl
import polars.testing
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import replay
from replay.trace.check import check_frame
from replay.trace.redact import redact
from tests.teardown.address_spaces import pieces, trace_of

CAPTURES = Path(__file__).parents[2] / "captures"


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(pieces(), max_size=8))
def test_counts_the_same(some):
    trace = trace_of(some, 5)
    named = trace.frame.with_columns(pl.lit("/home/me/secret").cast(pl.Categorical).alias("vma_name"))
    trace = type(trace)(named, trace.meta, trace.name)
    shown = redact(trace)
    check_frame(shown.frame, shown.meta, "redacted")
    assert shown.meta.redacted
    text = shown.frame.select(pl.col(pl.Categorical).cast(pl.String)).write_csv() + repr(shown.meta)
    assert "secret" not in text
    assert "made-up" not in text
    before, after = replay.run(trace), replay.run(shown)
    assert before.drop("comm", "pid").equals(after.drop("comm", "pid"))


@pytest.mark.parametrize("name", ["pipeline", "numpy-thp", "redis"])
def test_a_capture(name: str, tmp_path: Path):
    """A whole trace: what is left, and what is not."""
    trace = replay.read_trace(CAPTURES / f"{name}.parquet")
    frame = trace.frame.with_columns(
        memcg=pl.when(pl.col("mm") == 0).then(4094).otherwise(35).cast(pl.UInt64)
    )
    spaces = tuple(
        dataclasses.replace(space, cmdline="cc1 secret.c", shared_with=(space.pid + 1,), held_ms=1.5)
        for space in trace.meta.address_spaces
    )
    meta = dataclasses.replace(trace.meta, address_spaces=spaces)
    shown = redact(dataclasses.replace(trace, frame=frame, meta=meta))
    back = replay.read_trace(shown.write(tmp_path / "t.parquet"))
    pl.testing.assert_frame_equal(
        replay.run(back).drop("trace", "pid", "comm"), replay.run(trace).drop("trace", "pid", "comm")
    )
    assert "secret" not in str(back.meta)
    assert back.meta.kernel_release == "6.18.44"
    assert trace.meta.kernel_release != "6.18.44"
    assert back.meta.captured_at == trace.meta.captured_at[:10]
    pids = {pid for space in back.meta.address_spaces for pid in (space.pid, *space.shared_with)}
    assert pids == set(range(1, len(pids) + 1))
    assert back.frame["memcg"].max() <= 2
    # nothing of where memory lies beyond its gibibyte, by which a running process could be found
    gibibyte = (1 << 30) // 4096
    numbers = back.frame.group_by("mm").agg((pl.col("vpn") // gibibyte).unique().sort())
    for of_space in numbers["vpn"].to_list():
        assert of_space[0] == 1
        assert max(after - before for before, after in pairwise([1, *of_space])) <= 10
    for column in ("vpn", "vma_start"):
        assert (
            (trace.frame[column].cast(pl.Int64) - back.frame[column].cast(pl.Int64)) % gibibyte == 0
        ).all()
        assert back.frame[column].max() < trace.frame[column].max() // 1000


def test_redacted_twice():
    trace = redact(replay.read_trace(CAPTURES / "pipeline.parquet"))
    again = redact(trace)
    assert again.frame.drop("comm", "vma_name", "vma_flags", "kind", "vma_perms").equals(
        trace.frame.drop("comm", "vma_name", "vma_flags", "kind", "vma_perms")
    )
