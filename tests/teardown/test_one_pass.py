# SPDX-License-Identifier: Apache-2.0
"""The one pass counts alike however its rows come, and however little room it has."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from replay.errors import TraceError
from replay.teardown import layout, replayer, workspace
from replay.teardown.algorithms import ALGORITHMS
from replay.teardown.pages import W_CLAIMED, WORD_COLUMNS, claim
from replay.teardown.replayer import replayed, replayed_file, run_checked
from replay.trace import file, totals
from replay.trace.check import check_frame
from replay.trace.columns import READ, Codes, Columns, batches
from replay.trace.frame import Trace
from tests.teardown.address_spaces import Piece, pieces, trace_of

CAPTURES = Path(__file__).resolve().parent.parent.parent / "captures"
WITHOUT_JIT = os.environ.get("NUMBA_DISABLE_JIT") == "1"
ALL = list(ALGORITHMS.values())
SOME = settings(
    max_examples=6 if WITHOUT_JIT else 120, deadline=None, suppress_health_check=list(HealthCheck)
)


def in_parts(trace: Trace, rows: int, extents: int, monkeypatch: pytest.MonkeyPatch) -> pl.DataFrame:
    """The results of a trace read so many rows at a time, with room for so many extents at first."""
    with monkeypatch.context() as changed:
        changed.setattr(replayer, "BATCH_ROWS", rows)
        changed.setattr(workspace, "EXTENTS", extents)
        for name in ("WORDS", "NOTES", "FOLIOS"):
            changed.setattr(workspace, name, 2)
        return replayed(trace, ALL).results


@SOME
@given(
    st.lists(pieces(), min_size=1, max_size=12), st.integers(0, 30), st.integers(1, 40), st.integers(1, 200)
)
@example([Piece(what="pmd"), Piece(order=9, count=300, first=1, new_table=True)], 14, 1, 2)
@example([Piece(count=40, stride=2), Piece(what="again", count=30, new_table=True)], 3, 7, 20)
@example([Piece(order=3, count=8, cut=1), Piece(what="pmd"), Piece(what="again", count=8)], 3, 2, 4)
@example(
    [Piece(count=9, new_table=True), Piece(count=9, mlocked=True, off_lru=True, new_table=True)], 3, 2, 9
)
def test_rows_and_room_change_no_count(some: list[Piece], tables: int, rows: int, extents: int) -> None:
    trace = trace_of(some, tables)
    with pytest.MonkeyPatch.context() as monkeypatch:
        found = in_parts(trace, rows, extents, monkeypatch)
    assert found.equals(run_checked(trace, ALL))


@pytest.mark.skipif(WITHOUT_JIT, reason="takes minutes without machine code")
@pytest.mark.parametrize("extents", [600, 3000])
def test_a_capture_is_counted_alike_in_parts(extents: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("redis", "numpy-32k", "postgresql"):
        trace = file.read(CAPTURES / f"{name}.parquet")
        assert in_parts(trace, 1000, extents, monkeypatch).equals(run_checked(trace, ALL)), name


def test_a_larger_address_space_is_torn_down_in_parts() -> None:
    """Not at once in a larger workspace, which would count alike: memory would grow with it."""
    trace = trace_of([Piece(count=500, stride=2, new_table=True)] * 60, 3)
    codes = Codes(trace.meta.format_version)
    [space] = trace.meta.address_spaces

    def rows() -> Iterator[Columns]:
        return batches(trace.frame.select(READ).to_arrow().to_batches(), codes, "t")

    rules = [replayer.rules(one, 4096, "x86_64") for one in ALL]
    owners = np.array([[space.pid, codes.of("comm", space.comm), 3]])
    k = workspace.replay_all(rows, owners, rules, 4096, checked=True, extents=12_000)
    # the gather holds up to 10,000 of them
    assert len(k.tables.extents) == 12_000 < len(trace.frame)
    # each algorithm had to keep a state of its own
    assert len(k.states.folios) == len(ALL)


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 200)), max_size=20))
@example([(0, 64), (64, 1), (127, 1), (63, 1)])
@example([(63, 2), (65, 63), (128, 128)])
def test_a_frame_is_claimed_once(ranges: list[tuple[int, int]]) -> None:
    words = np.zeros((64, WORD_COLUMNS), np.int64)
    used = np.zeros(1, np.int64)
    claimed: set[int] = set()
    for first, frames in ranges:
        wanted = set(range(first, first + frames))
        assert claim(words, used, 1, first, frames, W_CLAIMED) == claimed.isdisjoint(wanted)
        if not claimed.isdisjoint(wanted):
            break
        claimed |= wanted


def test_whole_folios_share_extents() -> None:
    """Those of a page-table page are one extent: 384 folios need room for 12, and for the next row."""
    trace = trace_of([Piece(count=512, order=4, new_table=True)] * 12, 3)
    codes = Codes(trace.meta.format_version)
    rules = [replayer.rules(one, 4096, "x86_64") for one in ALL]
    [space] = trace.meta.address_spaces
    owners = np.array([[space.pid, codes.of("comm", space.comm), 3]])

    def rows() -> Iterator[Columns]:
        return batches(trace.frame.select(READ).to_arrow().to_batches(), codes, "t")

    k = workspace.replay_all(rows, owners, rules, 4096, checked=True, extents=13)
    assert len(trace.frame) == 12 * 32
    assert len(k.tables.extents) == 13
    assert len(k.states.folios) == 1, "it was torn down in parts"


def frames(trace: Trace) -> Iterator[tuple[str, pl.DataFrame]]:
    """Frames of a trace that is right, with one thing wrong."""
    frame = trace.frame
    yield "shuffled", frame.sample(fraction=1.0, shuffle=True, seed=1)
    yield "doubled", pl.concat([frame, frame])
    yield "a row doubled", pl.concat([frame[:3], frame[2:]])
    yield "no pages", frame.with_columns(pages=pl.lit(0, pl.UInt32))
    yield "another owner", frame.with_columns(pid=pl.col("pid") + 1)
    yield "no such address space", frame.with_columns(mm=pl.col("mm") + 1)
    yield "more own mappings", frame.with_columns(own=pl.col("own") + 1)
    yield "mapped less", frame.with_columns(folio_mapcount=pl.col("folio_mapcount") // 2)


def test_a_frame_is_not_trusted_more_than_a_file(tmp_path: Path) -> None:
    trace = trace_of([Piece(count=30, stride=2), Piece(order=3, count=5), Piece(what="swap", count=4)], 3)
    for what, frame in frames(trace):
        wrong = Trace(frame, trace.meta, "t")
        with pytest.raises(TraceError) as literal:
            check_frame(frame, trace.meta, "t")
        with pytest.raises(TraceError) as found:
            run_checked(wrong)
        assert str(found.value) == str(literal.value), what
        path = wrong.write(tmp_path / "t.parquet", force=True)
        with pytest.raises(TraceError) as of_file:
            replayed_file(path, ALL)
        assert str(of_file.value) == str(literal.value).replace("t:", f"{path}:", 1), what


def test_figures_are_those_of_the_rows() -> None:
    for name in ("pipeline", "postgresql", "numpy-thp", "jvm"):
        trace = file.read(CAPTURES / f"{name}.parquet")
        figures = replayed(trace, []).figures
        assert figures is not None
        added = totals.sums(trace.frame, len(trace.meta.address_spaces))
        assert (figures[:, : layout.TYPES] == added).all(), name
        assert figures[:, layout.ROWS].sum() == len(trace.frame)


def test_what_is_wrong_with_a_huge_trace_is_not_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The polars check would take more memory than there is."""
    monkeypatch.setattr(replayer, "LARGEST_FRAME", 10)
    trace = trace_of([Piece(count=30, stride=2)], 3)
    frame = trace.frame.with_columns(own=pl.when(pl.int_range(pl.len()) == 7).then(0).otherwise("own"))
    path = Trace(frame.cast(trace.frame.schema), trace.meta).write(tmp_path / "t.parquet")
    with pytest.raises(TraceError, match="row 7 is impossible, or does not fit"):
        replayed_file(path, ALL)


def test_a_trace_that_is_cut_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes((CAPTURES / "build.parquet").read_bytes())
    with file.opened(path) as stream:
        rows = stream.batches(READ, 10_000)
        next(rows)
        with path.open("r+b") as cut:
            cut.truncate(1000)
        with pytest.raises(TraceError, match="damaged"):
            list(rows)


@pytest.mark.skipif(WITHOUT_JIT, reason="takes minutes without machine code")
def test_memory_is_bounded_by_what_is_under_way_not_by_the_trace(tmp_path: Path) -> None:
    """`run -v` says how much it was: four times as many rows take hardly more."""
    peaks = []
    for copies in (1, 4):
        path = several(copies, tmp_path / f"{copies}.parquet")
        command = [sys.executable, "-m", "replay", "run", str(path), "-a", "baseline", "-v", "--per", "trace"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        [line] = [line for line in done.stderr.splitlines() if line.startswith("peak memory: ")]
        peaks.append(int(line.split()[2].replace(",", "")))
    # batches wait for a slow reader; three more copies in memory would take 2 GiB
    assert peaks[1] < peaks[0] + 150, peaks


def several(copies: int, path: Path) -> Path:
    """The rows of a build, so many times over, as one trace."""
    trace = file.read(CAPTURES / "build-32k.parquet")
    spaces = trace.meta.address_spaces
    rows = [trace.frame.with_columns(mm=pl.col("mm") + len(spaces) * copy) for copy in range(copies)]
    meta = dataclasses.replace(trace.meta, address_spaces=spaces * copies)
    return Trace(pl.concat(rows), meta, "several").write(path)
