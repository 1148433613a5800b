# SPDX-License-Identifier: Apache-2.0
"""Traces that are wrong in one place are refused in one line, counted for what is in them, or told to lack
rows.

REPLAY_MUTATIONS=2000 makes as many; the last whole run of 2,000 found none that passed in silence.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

import replay
from replay.errors import TraceError
from replay.teardown import reference
from replay.teardown.algorithms import ALGORITHMS
from replay.teardown.replayer import replayed_file, run_checked
from replay.teardown.spaces import address_spaces
from replay.trace.frame import Trace
from tests.trace.mutations import KINDS, mutated, small_traces

COUNT = int(os.environ.get("REPLAY_MUTATIONS", "150"))

UNUSED = ("file", "exclusive", "soft_dirty", "vma_flags", "vma_name")
"""Columns that no algorithm looks at."""

MANY_TABLES = 10_000
"""The reference frees page tables one by one."""


@pytest.fixture(scope="module")
def traces() -> dict[str, Trace]:
    return small_traces()


def test_the_traces_are_right(traces: dict[str, Trace], tmp_path: Path) -> None:
    for name, trace in traces.items():
        back = replay.read_trace(trace.write(tmp_path / f"{name}.parquet"))
        assert 50 < len(back.frame) < 1000
        assert back.notes == ()
    assert (traces["numpy-thp"].frame["kind"].cast(pl.String) == "pmd").any()
    assert (traces["numpy-32k"].frame["order"] == 3).any()


def test_mutations(traces: dict[str, Trace], tmp_path: Path) -> None:
    names = list(traces)
    expected = {name: run_checked(trace).drop("trace") for name, trace in traces.items()}
    found: Counter[str] = Counter()
    for seed in range(COUNT):
        kind, name = KINDS[seed % len(KINDS)], names[seed // len(KINDS) % len(names)]
        path = tmp_path / "t.parquet"
        what = f"{name}, {kind} {seed}: {mutated(traces[name], kind, seed, path)}"
        found[judged(path, traces[name], expected[name], what)] += 1
    assert found.total() == COUNT
    assert found["refused"] > COUNT // 3, found
    assert found["counted"] > COUNT // 20, found


def judged(path: Path, before: Trace, expected: pl.DataFrame, what: str) -> str:
    """What became of a trace that is wrong in one place; fails where it passed though it should not."""
    try:
        trace = replay.read_trace(path)
        results = run_checked(trace, list(ALGORITHMS))
    except TraceError as error:
        message = str(error)
        with pytest.raises(TraceError) as in_one_pass:
            replayed_file(path, list(ALGORITHMS.values()))
        assert str(in_one_pass.value) == message, what
        assert "\n" not in message, what
        assert message.startswith(str(path)), what
        assert len(message) < 1000, what
        return "refused"
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    in_one = replayed_file(path, list(ALGORITHMS.values()))
    assert in_one.results.equals(results), what
    assert in_one.trace.notes == trace.notes, what
    assert_lost_rows_are_told(trace, before, what)
    assert_counted_literally(trace, results, what)
    if same_but_for(trace, before, UNUSED) and trace.meta == before.meta:
        assert results.drop("trace").equals(expected), what
    return "noted" if trace.notes else "counted"


def assert_lost_rows_are_told(trace: Trace, before: Trace, what: str) -> None:
    """Pages that are lost, or more, do not go unnoticed."""
    kind = pl.col("kind").cast(pl.String)
    pages = [
        one.frame.group_by("mm", kind).agg(pl.col("pages").cast(pl.Int64).sum()).sort("mm", "kind")
        for one in (trace, before)
    ]
    if not pages[0].equals(pages[1]):
        assert trace.notes or figures(trace) != figures(before), what


def figures(trace: Trace) -> list[tuple[object, ...]]:
    return [
        (space.rss_anon, space.rss_file, space.rss_shmem, space.swap, space.hugetlb, str(space.unaccounted))
        for space in trace.meta.address_spaces
    ]


def assert_counted_literally(trace: Trace, results: pl.DataFrame, what: str) -> None:
    """Each address space under one algorithm, in turn, entry by entry."""
    counted = {(row["mm"], row["algorithm"]): row for row in results.iter_rows(named=True)}
    names = list(ALGORITHMS)
    for space in address_spaces(trace):
        name = names[(space.mm + len(what)) % len(names)]
        row = counted[space.mm, name]
        assert row["ptes"] == space.extents.pages[space.extents.kind == 0].sum(), what
        if space.page_tables > MANY_TABLES or trace.meta.architecture != "x86_64":
            continue
        literal = reference.replay(space, ALGORITHMS[name])
        assert {key: row[key] for key in literal.counters} == literal.counters, what


def same_but_for(trace: Trace, before: Trace, names: tuple[str, ...]) -> bool:
    columns = [name for name in before.frame.columns if name not in names]
    one, two = (
        some.frame.select(columns).with_columns(pl.col(pl.Categorical).cast(pl.String))
        for some in (trace, before)
    )
    return one.equals(two)
