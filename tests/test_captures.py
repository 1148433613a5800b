# SPDX-License-Identifier: Apache-2.0
"""The bundled captures: each reads, replays, and is counted alike by the reference and the machine."""

from __future__ import annotations

import os
from functools import cache
from itertools import islice
from pathlib import Path

import polars as pl
import pytest

import replay
from replay.teardown import reference
from replay.teardown.algorithms import ALGORITHMS
from replay.teardown.replayer import CHECKS, run_checked
from replay.teardown.spaces import address_spaces
from replay.trace.frame import Trace

CAPTURES = Path(__file__).parent.parent / "captures"
FILES = sorted(CAPTURES.glob("*.parquet"))
MEGABYTE = 1_000_000
MANY_PTES = 200_000
"""In traces with more, the slow reference replays each address space under one algorithm, in turn."""

MOST_PTES = 1_000_000
"""In traces with more, it replays every third address space only, unless REPLAY_REFERENCE is `all`."""

each = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@cache
def trace_of(path: Path) -> Trace:
    return replay.read_trace(path)


@cache
def results_of(path: Path) -> pl.DataFrame:
    return run_checked(trace_of(path))


def test_they_stay_small():
    sizes = {"live": 0, "exit": 0}
    for path in FILES:
        sizes[trace_of(path).meta.mode] += path.stat().st_size
    assert 0 < sizes["live"] < 15 * MEGABYTE
    assert sum(sizes.values()) < 30 * MEGABYTE


@each
def test_it_says_how_it_was_taken(path: Path):
    meta = trace_of(path).meta
    assert meta.mode in ("live", "exit")
    assert meta.held == "ptrace"
    assert (meta.pmd, meta.mapcounts) == ("known", "precise")
    assert meta.thp["enabled"] and meta.kernel_release


@each
def test_it_holds_what_status_said(path: Path):
    """Pages of each address space beside the kernel's own figures; those of file pages lag behind."""
    trace = trace_of(path)
    anon = pl.col("kpageflags") & (1 << 12) != 0
    found = dict(
        trace.frame.filter(pl.col("kind").is_in(["page", "pmd"]), anon)
        .group_by("mm")
        .agg(pl.col("pages").sum())
        .iter_rows()
    )
    assert trace.meta.changed_entries == 0
    for mm, space in enumerate(trace.meta.address_spaces):
        assert found.get(mm, 0) == space.rss_anon, (mm, space.comm)


@each
def test_replay_takes_every_page_down(path: Path):
    """Only v1 and v2 may miss an rmap, and only where a table goes on with pages of a PMD-mapped folio."""
    results = results_of(path)
    for name in ("rmap_missed", *CHECKS):
        wrong = results.filter(pl.col(name) != 0)
        if name in ("rmap_missed", "freed_while_mapped"):
            wrong = wrong.filter(~(pl.col("algorithm").is_in(["v1", "v2"]) & (pl.col("pmd_mappings") > 0)))
        assert wrong.is_empty(), name


@each
def test_all_algorithms_free_the_same(path: Path):
    """But for folios that wait in a batch, which algorithms that drain none leave."""
    drains = {name: algorithm.drains_lru for name, algorithm in ALGORITHMS.items()}
    results = results_of(path).with_columns(pl.col("algorithm").replace_strict(drains).alias("drains"))
    freed = results.group_by("mm", "drains").agg(pl.col("folios_freed", "pages_freed").n_unique())
    assert freed.select("folios_freed", "pages_freed").max().row(0) == (1, 1)


@each
def test_machine_counts_what_the_reference_counts(path: Path):
    trace = trace_of(path)
    ptes = results_of(path).filter(pl.col("algorithm") == "baseline")["ptes"].sum()
    names = list(ALGORITHMS)
    every = 3 if ptes > MOST_PTES and os.environ.get("REPLAY_REFERENCE") != "all" else 1
    counted = {(row["mm"], row["algorithm"]): row for row in results_of(path).iter_rows(named=True)}
    for number, space in enumerate(islice(address_spaces(trace), 0, None, every)):
        mm = space.mm
        for name in names if ptes <= MANY_PTES else [names[number % len(names)]]:
            found = reference.replay(space, ALGORITHMS[name])
            row = counted[mm, name]
            assert {key: row[key] for key in found.counters} == found.counters, (mm, name)
            for check in CHECKS:
                assert row[check] == getattr(found, check), (mm, name, check)


@each
def test_the_table_lists_it(path: Path):
    page = (CAPTURES / "README.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith(f"| `{path.name}` |")]
    assert len(lines) == 1
    assert f"| {path.stat().st_size:,} |" in lines[0]
    assert f"--only {path.stem}`" in page
