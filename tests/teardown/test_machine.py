# SPDX-License-Identifier: Apache-2.0
"""The machine counts exactly what the literal reference counts, on any address space."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from replay.errors import ReplayError
from replay.teardown import reference
from replay.teardown.algorithms import (
    ALGORITHMS,
    Algorithm,
    Entry,
    Mapcounts,
    PageTables,
    Release,
    Rmap,
)
from replay.teardown.counters import CHECKS
from replay.teardown.replayer import replay, replay_together, run_checked
from replay.teardown.spaces import address_spaces
from replay.teardown.variants import parse, variant
from replay.trace.check import check_frame
from replay.trace.frame import Trace
from tests.teardown.address_spaces import Piece, pieces, trace_of

WITHOUT_JIT = os.environ.get("NUMBA_DISABLE_JIT") == "1"
IN_MACHINE_CODE = pytest.mark.skipif(WITHOUT_JIT, reason="takes minutes without machine code")
SMALL = settings(
    max_examples=25 if WITHOUT_JIT else 120, deadline=None, suppress_health_check=list(HealthCheck)
)
LARGE = settings(
    max_examples=3 if WITHOUT_JIT else 20, deadline=None, suppress_health_check=list(HealthCheck)
)


ARCHITECTURES = st.sampled_from(["x86_64", "aarch64"])


def assert_equal(
    some: list[Piece],
    tables: int,
    architecture: str = "x86_64",
    page_size: int = 4096,
    algorithms: Sequence[Algorithm] = tuple(ALGORITHMS.values()),
) -> None:
    trace = trace_of(some, tables, architecture, page_size)
    check_frame(trace.frame, trace.meta, "made-up")
    [space] = address_spaces(trace)
    found = run_checked(trace, algorithms).iter_rows(named=True)
    for row, algorithm in zip(found, algorithms, strict=True):
        expected = reference.replay(space, algorithm)
        assert {name: row[name] for name in expected.counters} == expected.counters, algorithm
        assert {name: row[name] for name in CHECKS} == {name: getattr(expected, name) for name in CHECKS}


@SMALL
@given(st.lists(pieces(), max_size=12), st.integers(0, 40), ARCHITECTURES)
@example([], 0, "x86_64")
@example([Piece(what="pmd"), Piece(order=9, count=300, first=1, new_table=True)], 14, "x86_64")
@example([Piece(order=9, count=300, first=1), Piece(what="pmd", count=1)], 14, "x86_64")
@example([Piece(order=3, count=8, uffd_wp=3), Piece(order=3, count=8, cut=3)], 1, "x86_64")
@example([Piece(order=9, count=300, cut=7), Piece(order=4, count=33, new_vma=True)], 1, "aarch64")
@example([Piece(count=93, locked=True, mlocked=True), Piece(order=2, count=4)], 3, "x86_64")
@example([Piece(count=70, off_lru=True, mlocked=True, locked=True)], 510, "x86_64")
@example([Piece(what="pmd", locked=True), Piece(what="again", count=9, locked=True)], 2, "x86_64")
@example([Piece(what="marker", count=20), Piece(what="swap", count=3, locked=True)], 1018, "x86_64")
def test_machine_equals_reference(some: list[Piece], tables: int, architecture: str):
    assert_equal(some, tables, architecture)


FEW = settings(max_examples=3 if WITHOUT_JIT else 30, deadline=None, suppress_health_check=list(HealthCheck))


@FEW
@given(
    st.lists(pieces(), max_size=8),
    st.integers(0, 40),
    st.sampled_from(["aarch64", "loongarch64"]),
    st.sampled_from([16384, 65536]),
)
@example([Piece(what="pmd"), Piece(order=11, count=300, first=1, new_table=True)], 14, "aarch64", 16384)
@example([Piece(order=11, count=700, cut=7), Piece(order=7, count=300, new_vma=True)], 1, "aarch64", 16384)
def test_machine_equals_reference_with_larger_pages(
    some: list[Piece], tables: int, architecture: str, page_size: int
):
    assert_equal(some, tables, architecture, page_size)


# around a batch of ranges or of pages, the whole gather of mainline, of the others, of ranges
@IN_MACHINE_CODE
@pytest.mark.parametrize(
    ("page_size", "edge"),
    [(16384, edge) for edge in (1031, 2054, 8187, 8192, 9215)] + [(65536, edge) for edge in (8196, 8198)],
)
def test_gather_of_larger_pages_fills_up(page_size: int, edge: int):
    for count in (edge - 1, edge, edge + 1):
        assert_equal([Piece(count=count, stride=2), Piece(what="pmd")], 0, "aarch64", page_size)
        assert_equal([], count, "loongarch64", page_size)
    assert_equal([Piece(type="file", dirty=1, count=edge + 1)], 0, "aarch64", page_size)


# around what fills the bundle, a batch of ranges or of pages, the whole gather of pages or of ranges
EDGES = [size + n for size in (8, 263, 518, 9698, 9953) for n in (-2, -1, 0, 1, 2)]


@IN_MACHINE_CODE
@LARGE
@given(
    st.lists(pieces(), max_size=4),
    st.sampled_from(EDGES),
    st.sampled_from([0, 0, 1, 3, 9]),
    st.sampled_from(["anon", "swapcache", "file"]),
    st.sampled_from([1, 2]),
    st.booleans(),
    st.lists(pieces(), max_size=4),
)
@example([], 9698, 0, "anon", 1, False, [Piece(), Piece(what="pmd")])
@example([], 9697, 0, "anon", 1, False, [Piece(what="pmd")])
@example([], 9953, 0, "anon", 1, False, [Piece(what="hugetlb")])
@example([], 9698, 3, "anon", 2, False, [Piece(order=3, count=8)])
@example([Piece(type="file", dirty=1)], 600, 0, "file", 1, True, [])
def test_gather_fills_up(before, count, order, kind, stride, dirty, after):
    assert_equal(
        [*before, Piece(count=count, order=order, type=kind, stride=stride, dirty=int(dirty)), *after], 3
    )


@pytest.mark.parametrize("tables", [0, 1, 7, 8, 9, 508, 509, 510, 1018, 9697, 9698, 9699, 9953, 9954, 21000])
def test_page_tables_alone(tables: int):
    # free_pgtables() can fill the gather all by itself
    assert_equal([], tables)


@pytest.mark.parametrize(("tables", "flushes"), [(0, 0), (1, 1), (509, 1), (510, 2), (1111, 3)])
def test_page_tables_freed_by_rcu_make_the_tlb_flushes_of_arm64(tables: int, flushes: int):
    some = [Piece(count=20000), Piece(type="file", dirty=1, count=40)]
    assert_equal(some, tables, "aarch64")
    found = run_checked(trace_of(some, tables, "aarch64"))
    assert set(found["tlb_flushes"]) == {flushes}
    assert set(found["table_batches"]) == {flushes}
    assert set(found["page_tables"]) == {tables}


SIZES = st.one_of(st.integers(1, 12), st.sampled_from([15, 31, 63, 255, 510, 512]))


@st.composite
def variants(draw: st.DrawFn) -> Algorithm:
    """Any algorithm that no rule refuses."""
    entry = draw(st.sampled_from(Entry))
    rmaps = [rmap for rmap in Rmap if rmap is not Rmap.RANGE or entry is Entry.RANGE]
    release = draw(st.sampled_from(Release))
    values: dict[str, Any] = {
        "name": "variant",
        "entry": entry,
        "rmap": draw(st.sampled_from(rmaps)),
        "mapcounts": draw(st.sampled_from(Mapcounts)),
        "release": release,
        "release_batch": draw(st.one_of(st.just(release.batch), st.integers(0, 40))),
        "relocks": draw(st.booleans()),
        "page_tables": draw(st.sampled_from(PageTables)),
        "delayed_rmap": entry is not Entry.RANGE and draw(st.booleans()),
        "thps_queued": draw(st.booleans()),
        "drains_lru": draw(st.booleans()),
        "bundle": max(draw(SIZES), entry.most_slots),
        "max_gather_entries": draw(st.one_of(SIZES, st.sampled_from([1000, 10000]))),
        "max_folios_per_free": draw(SIZES),
    }
    if draw(st.booleans()):
        values["batch_slots"] = max(draw(SIZES), entry.most_slots)
    else:
        values["batch_pages"] = draw(st.sampled_from([1, 2, 4]))
    if values["relocks"]:
        values["lock_batch"] = draw(SIZES)
    return variant(ALGORITHMS["baseline"], values)


VARIANTS = settings(
    max_examples=12 if WITHOUT_JIT else 80, deadline=None, suppress_health_check=list(HealthCheck)
)


@VARIANTS
@given(st.lists(pieces(), max_size=10), st.integers(0, 600), ARCHITECTURES, variants())
def test_machine_equals_reference_with_any_parameters(
    some: list[Piece], tables: int, architecture: str, algorithm: Algorithm
):
    assert_equal(some, tables, architecture, algorithms=[algorithm])


@pytest.mark.parametrize("name", ["baseline", "anon-batch", "v1", "v2", "v6.12", "mainline"])
@pytest.mark.parametrize("order", [1, 2, 4])
def test_whole_folios_are_cut_where_a_batch_or_the_gather_is_full(name: str, order: int):
    some = [Piece(order=order, count=6 << order), Piece(type="file", dirty=1, order=order, count=5 << order)]
    some += [Piece(order=order, count=4 << order, others=1, off_lru=True)]
    sizes = (2, 3, 7) if WITHOUT_JIT else range(2, 20)
    texts = [
        f"{name},bundle={size},batch_slots={size + 1},max_gather_entries={most},max_folios_per_free=5,"
        f"name=of-{size}-{most}"
        for size in sizes
        for most in (1, 40)
    ]
    assert_equal(some, 2, algorithms=[parse(text)[0] for text in texts])


@FEW
@given(st.lists(pieces(st.integers(1, 40)), max_size=6), st.integers(1, 4), variants())
def test_machine_equals_reference_together(some: list[Piece], processes: int, algorithm: Algorithm):
    """Processes that map the same pages, as after fork, exit one after the other."""
    [space] = address_spaces(trace_of(some, 3))
    e = space.extents
    shared = e._replace(mapcount=e.mapcount * processes, folio_mapcount=e.folio_mapcount * processes)
    spaces = [dataclasses.replace(space, mm=mm, extents=shared) for mm in range(processes)]
    for one in (algorithm, *(ALGORITHMS[name] for name in ("baseline", "v2", "mainline"))):
        outcomes = reference.replay_together(spaces, one)
        for counts, outcome in zip(replay_together(spaces, one), outcomes, strict=True):
            assert {name: counts[name] for name in outcome.counters} == outcome.counters


def test_the_last_of_several_processes_frees_what_they_share():
    trace = trace_of([Piece(count=5, others=1)], 1)
    rows = [
        trace.frame.with_columns(mm=pl.lit(mm, pl.UInt32), pid=pl.lit(9 - mm, pl.UInt32)) for mm in (0, 1)
    ]
    spaces = tuple(dataclasses.replace(trace.meta.address_spaces[0], pid=9 - mm) for mm in (0, 1))
    two = Trace(pl.concat(rows), dataclasses.replace(trace.meta, address_spaces=spaces), "two")
    alone = run_checked(two, "v2")
    assert alone["folios_freed"].to_list() == [0, 0]
    # by PID: the second address space exits first
    together = run_checked(two, "v2", together=True)
    assert together.select("pid", "folios_freed").rows() == [(8, 0), (9, 5)]
    other = run_checked(two, "v2", together=True, order=[9])
    assert other.select("pid", "folios_freed").rows() == [(9, 0), (8, 5)]
    for order in ([7], [9, 9]):
        with pytest.raises(ReplayError):
            run_checked(two, "v2", together=True, order=order)


@FEW
@given(st.lists(pieces(), max_size=8), st.lists(st.integers(0, 3), min_size=1, max_size=9), variants())
@example([Piece(count=40, cut=1)], [1, 2], parse("v6.12")[0])
@example([Piece(count=40, cut=1, others=0)], [1, 2, 2], parse("baseline")[0])
def test_machine_equals_reference_with_memory_cgroups(
    some: list[Piece], cgroups: list[int], algorithm: Algorithm
):
    [space] = address_spaces(trace_of(some, 3))
    e = space.extents
    # one cgroup for each folio, or each frame of order 0
    memcg = np.array([cgroups[int(head) % len(cgroups)] for head in e.folio], np.int64)
    changed = dataclasses.replace(space, extents=e._replace(memcg=memcg))
    for one in (algorithm, *(ALGORITHMS[name] for name in ("baseline", "v2", "folio-batch", "mainline"))):
        outcome = reference.replay(changed, one)
        found = replay(changed, one)
        assert {name: found[name] for name in outcome.counters} == outcome.counters


@pytest.mark.parametrize(
    ("algorithm", "same", "alternating"),
    [("baseline", 2, 40), ("v6.12", 3, 40), ("v6.12,release_batch=1", 40, 40)],
)
def test_a_change_of_the_lruvec_takes_its_lock(algorithm: str, same: int, alternating: int):
    """40 pages, released as 8 and 32, in v6.12 as 7, 31 and 2; every other page of another cgroup."""
    trace = trace_of([Piece(count=40, cut=1)], 1)
    [space] = address_spaces(trace)
    for memcg, locks in ((np.zeros(40, np.int64), same), (np.arange(40) % 2, alternating)):
        changed = dataclasses.replace(space, extents=space.extents._replace(memcg=memcg.astype(np.int64)))
        assert replay(changed, parse(algorithm)[0])["lruvec_locks"] == locks
