# SPDX-License-Identifier: Apache-2.0
"""`run --check`: machine and reference side by side, also on a part of what is too large."""

from __future__ import annotations

import dataclasses

import pytest

from replay.teardown import agreement
from replay.teardown.algorithms import ALGORITHMS
from tests.teardown.address_spaces import Piece, trace_of

TRACE = trace_of([Piece(count=3000), Piece(what="pmd"), Piece(order=4, count=600)], 9)
BOTH = [ALGORITHMS["v2"], ALGORITHMS["mainline"]]


def test_all_of_a_small_trace_is_compared():
    found = agreement.compare(TRACE, BOTH)
    assert (found.compared, found.replays, found.total, found.cut, found.differing) == (1, 2, 1, 0, [])


@pytest.mark.parametrize("pages", [1, 2000, 5000])
def test_of_a_large_address_space_a_part_is_compared(pages: int):
    found = agreement.compare(TRACE, BOTH, pages)
    assert (found.compared, found.cut, found.differing) == (1, 1, [])


def test_a_difference_is_named(monkeypatch: pytest.MonkeyPatch):
    """A reference that is given another algorithm stands for a machine that is wrong."""
    other = dataclasses.replace(ALGORITHMS["v2"], bundle=1)
    literal = agreement.reference.replay
    monkeypatch.setattr(agreement.reference, "replay", lambda space, _: literal(space, other))
    found = agreement.compare(TRACE, [ALGORITHMS["v2"]])
    assert len(found.differing) == 1
    assert "v2: the machine counts" in found.differing[0] and "instead of" in found.differing[0]
