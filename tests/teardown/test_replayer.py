# SPDX-License-Identifier: Apache-2.0
"""Counts worked out by hand where what happens depends on more than a page's own mapcount."""

from __future__ import annotations

import polars as pl
import pytest

from replay.teardown.replayer import run
from replay.trace.frame import SCHEMA, Trace
from replay.trace.kpageflags import KPF_COMPOUND_HEAD, KPF_ZERO_PAGE, bit
from tests.teardown.address_spaces import Piece, trace_of


def counts(trace: Trace, algorithm: str, *names: str) -> tuple[int, ...]:
    return run(trace, algorithm).select(names).row(0)


@pytest.mark.parametrize(("algorithm", "atomics"), [("baseline", 300), ("mainline", 1), ("v2", 1)])
def test_a_folio_mapped_by_ptes_and_by_a_pmd(algorithm: str, atomics: int):
    """_nr_pages_mapped counts pages mapped by PTEs: it falls though the PMD maps them still; no split."""
    trace = trace_of([Piece(order=9, count=300), Piece(what="pmd", count=1)], page_tables=3)
    names = "nr_mapped_atomics", "deferred_split_calls", "pmd_mappings", "folios_freed"
    assert counts(trace, algorithm, *names) == (atomics, 0, 1, 1)


@pytest.mark.parametrize("algorithm", ["baseline", "anon-batch", "v2", "mainline"])
def test_a_partly_mapped_folio_in_the_swap_cache_is_not_queued(algorithm: str):
    """deferred_split_folio() returns at once: it is neither queued when captured nor by the teardown."""
    trace = trace_of([Piece(type="swapcache", order=3, count=3), Piece(type="file")], page_tables=1)
    names = "deferred_split_queued", "deferred_split_dequeued", "swapcache_frees", "folios_freed"
    assert counts(trace, algorithm, *names) == (0, 0, 1, 1)


@pytest.mark.parametrize(("flags", "entries"), [(bit(KPF_ZERO_PAGE), 1), (bit(KPF_COMPOUND_HEAD), 512)])
def test_only_the_huge_zero_page_is_one_entry(flags: int, entries: int):
    """Frames of a driver may lie in a compound page, and are mapped one by one."""
    row = trace_of([Piece(what="special")], page_tables=1).frame
    whole = {"vpn": 1 << 20, "pages": 512, "pfn": 1024, "folio": 1024, "order": 9, "kpageflags": flags}
    whole |= {"vma_pages": 512}
    frame = row.with_columns(pl.lit(value).cast(SCHEMA[name]).alias(name) for name, value in whole.items())
    trace = Trace(frame, trace_of([], 2).meta)
    assert counts(trace, "baseline", "special_ptes", "page_tables") == (entries, 2 if entries == 512 else 1)
