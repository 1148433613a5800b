"""A redacted trace says nothing of names and places, and counts the same."""

from __future__ import annotations

import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import replay
from replay.trace.check import check_frame
from replay.trace.redact import redact
from tests.teardown.address_spaces import pieces, trace_of


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
    assert before.drop("comm").equals(after.drop("comm"))
