# SPDX-License-Identifier: Apache-2.0
"""What follows the page size: sizes of the gather, of page tables, of huge pages."""

from __future__ import annotations

import pytest

from replay.teardown.algorithms import ALGORITHMS, max_table_batch
from replay.teardown.replayer import rules, run_checked
from replay.validate import workload_settings
from tests.teardown.address_spaces import Piece, trace_of


@pytest.mark.parametrize(
    ("page_size", "slots", "batches", "by_rcu", "pmd_order"),
    [
        (4096, (510, 255), (19, 39), 509, 9),
        (16384, (2046, 1023), (4, 9), 2045, 11),
        (65536, (8190, 4095), (1, 2), 8189, 13),
    ],
)
def test_sizes(page_size: int, slots: tuple[int, int], batches: tuple[int, int], by_rcu: int, pmd_order: int):
    both = ALGORITHMS["baseline"], ALGORITHMS["v2"]
    assert tuple(algorithm.slots_of_batch(page_size) for algorithm in both) == slots
    assert tuple(algorithm.max_gather_batch_count(page_size) for algorithm in both) == batches
    assert max_table_batch(page_size) == by_rcu
    assert rules(ALGORITHMS["v6.12"], page_size, "aarch64").queued_order == pmd_order
    assert rules(ALGORITHMS["baseline"], page_size, "aarch64").queued_order == -1


def test_a_huge_page_of_16_kib_pages_is_one_mapping_and_queued_from_birth():
    trace = trace_of([Piece(what="pmd"), Piece(order=9, count=512)], 2, "aarch64", 16384)
    row = run_checked(trace, ["v6.12"]).row(0, named=True)
    assert (row["pmd_mappings"], row["deferred_split_dequeued"], row["pages_freed"]) == (1, 1, 2048 + 512)


@pytest.mark.parametrize(("tables", "flushes"), [(2045, 1), (2046, 2), (4172, 3)])
def test_page_tables_of_16_kib_are_freed_2045_at_a_time(tables: int, flushes: int):
    trace = trace_of([Piece()], tables, "aarch64", 16384)
    assert set(run_checked(trace)["tlb_flushes"]) == {flushes}


@pytest.mark.parametrize(("count", "flushes"), [(8186, 1), (8187, 1), (8188, 2), (8191, 2)])
def test_a_gather_of_v6_12_holds_8187_pages_of_16_kib(count: int, flushes: int):
    # seen on v6.12: tiny_08185 of the kernel lab, which has two pages more
    row = run_checked(trace_of([Piece(count=count)], 1, "aarch64", 16384), ["v6.12"]).row(0, named=True)
    assert (row["gather_flushes"], row["gather_pages_peak"]) == (flushes, 4)


@pytest.mark.parametrize(
    ("page_size", "order", "kib"), [(4096, 9, 2048), (16384, 4, 256), (16384, 11, 32768), (65536, 13, 524288)]
)
def test_the_switches_of_folio_sizes(monkeypatch: pytest.MonkeyPatch, page_size: int, order: int, kib: int):
    monkeypatch.setattr(workload_settings.mmap, "PAGESIZE", page_size)
    assert workload_settings.switch_of(order) == f"hugepages-{kib}kB/enabled"
