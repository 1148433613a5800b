# SPDX-License-Identifier: Apache-2.0
"""arm64's contiguous entries: which are inferred, and where a run of `mainline` ends by them."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest

from replay.teardown import reference
from replay.teardown.algorithms import ALGORITHMS
from replay.teardown.extents import Extents
from replay.teardown.replayer import run_checked
from replay.teardown.spaces import AddressSpaceInput, address_spaces
from replay.trace.frame import Trace
from tests.teardown.address_spaces import Piece, trace_of

AT = 1 << 20  # where the first piece is


def extents_of(trace: Trace, known: list[int] | None = None) -> Extents:
    blocks = None if known is None else np.array(known, np.int64)
    [space] = address_spaces(trace, blocks)
    return space.extents


def bits(extents: Extents) -> list[tuple[int, int, bool]]:
    """(first page, pages, contiguous) of each extent."""
    rows = zip(extents.vpn - AT, extents.pages, extents.contiguous, strict=True)
    return [(int(vpn), int(pages), bool(bit)) for vpn, pages, bit in rows]


def rmap_sizes(extents: Extents, algorithm: str = "mainline") -> dict[int, int]:
    space = AddressSpaceInput(0, 1, "made-up", extents, 0, 4096, "aarch64")
    return dict(reference.replay(space, ALGORITHMS[algorithm]).rmap_sizes)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([Piece(order=6, count=64)], [(0, 64, True)]),
        ([Piece(order=6, count=40)], [(0, 32, True), (32, 8, False)]),
        ([Piece(order=6, count=40, cut=7)], None),
        # not aligned alike, less than a block, order-0 pages
        ([Piece(order=6, first=1, count=63)], [(0, 63, False)]),
        ([Piece(order=3, count=8)] * 4, [(0, 8, False), (8, 8, False), (16, 8, False), (24, 8, False)]),
        ([Piece(count=64)], [(0, 64, False)]),
        # a PMD mapping has one entry
        ([Piece(what="pmd")], [(0, 512, False)]),
    ],
)
def test_blocks_that_can_have_the_bit_have_it(pieces: list[Piece], expected: list | None):
    found = extents_of(trace_of(pieces, 1, "aarch64"))
    if expected is None:
        assert int(found.pages[found.contiguous].sum()) == 32
    else:
        assert bits(found) == expected
    assert not extents_of(trace_of(pieces, 1)).contiguous.any()  # x86-64 has no such bit


@pytest.mark.parametrize(("page_size", "order", "block"), [(16384, 7, 128), (65536, 5, 32)])
def test_a_block_of_larger_pages_is_2_mib(page_size: int, order: int, block: int):
    pieces = [Piece(order=order + 1, count=2 * block - 5)]
    assert bits(extents_of(trace_of(pieces, 1, "aarch64", page_size))) == [
        (0, block, True),
        (block, block - 5, False),
    ]
    assert not extents_of(
        trace_of([Piece(order=order - 1, count=block)], 1, "aarch64", page_size)
    ).contiguous.any()


def test_entries_without_permissions_or_with_different_ones_have_no_bit():
    trace = trace_of([Piece(order=6, count=64)], 1, "aarch64")
    hidden = trace.frame.with_columns(pl.lit("---p").cast(trace.frame["vma_perms"].dtype).alias("vma_perms"))
    assert bits(extents_of(Trace(hidden, trace.meta, "hidden"))) == [(0, 64, False)]
    protected = trace_of([Piece(order=5, count=32, uffd_wp=7)], 1, "aarch64")
    assert [pages for _, pages, bit in bits(extents_of(protected)) if bit] == []


@pytest.mark.parametrize(
    ("page_size", "kind", "dirty", "has"),
    [
        (4096, "file", 0, True),  # 16 entries, as many as a read fault maps
        (16384, "file", 0, False),  # 128, of which a read fault maps 4
        (16384, "file", 1, True),
        (16384, "shmem", 0, True),
        (16384, "anon", 0, True),
        (65536, "file", 0, True),  # 32, one by one: the last of them makes the block
    ],
)
def test_page_cache_is_mapped_in_parts_of_blocks(page_size: int, kind: str, dirty: int, has: bool):
    trace = trace_of([Piece(type=kind, order=7, count=128, dirty=dirty)], 1, "aarch64")
    trace = Trace(trace.frame, dataclasses.replace(trace.meta, page_size=page_size))
    assert extents_of(trace).contiguous.tolist() == [has]


def test_known_blocks_replace_the_inferred_ones():
    trace = trace_of([Piece(order=6, count=64)], 1, "aarch64")
    assert bits(extents_of(trace, [AT + 16])) == [(0, 16, False), (16, 16, True), (32, 32, False)]
    assert bits(extents_of(trace, [])) == [(0, 64, False)]


def test_the_second_vma_of_a_block_loses_the_bit_with_the_first():
    trace = trace_of([Piece(order=4, count=8)], 1, "aarch64")
    two = pl.concat(
        [
            trace.frame,
            trace.frame.with_columns(pl.col("vma") + 1, pl.col("vpn") + 8, pl.col("pfn") + 8),
        ]
    )
    assert bits(extents_of(Trace(two, trace.meta, "two"))) == [(0, 8, True), (8, 8, False)]


def test_a_run_ends_where_the_bit_does():
    trace = trace_of([Piece(order=9, count=100)], 1, "aarch64")
    found = extents_of(trace)
    assert rmap_sizes(found) == {96: 1, 4: 1}
    # in no other algorithm: those kernels had no such bit, or take single pages or pfns
    assert rmap_sizes(found, "anon-batch") == {100: 1}
    assert rmap_sizes(found, "v2") == rmap_sizes(found._replace(contiguous=np.zeros(2, np.bool_)), "v2")
    calls = run_checked(trace, ["mainline", "baseline"])["rmap_calls"].to_list()
    assert sorted(calls) == [2, 100]
