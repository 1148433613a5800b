# SPDX-License-Identifier: Apache-2.0
"""Extents of large folios: which of their PTEs an algorithm takes together, and where folios begin and end.

e is the extents table, r the rules, as in `machine.py`.
"""

from __future__ import annotations

from replay.jit.compiled import inline
from replay.teardown.state import (
    ANON,
    ANON_RUNS,
    FILE_RUNS,
    FLAGS,
    FOLIO,
    ORDER,
    ExtentTable,
    Rules,
)


@inline
def in_runs(e: ExtentTable, r: Rules, i: int) -> bool:
    """Whether PTEs that map a folio one after the other are taken together."""
    return e[i, ORDER] > 0 and r.runs & (ANON_RUNS if e[i, FLAGS] & ANON else FILE_RUNS) != 0


@inline
def are_whole_folios(e: ExtentTable, i: int) -> bool:
    """Whether the extent is of large folios without a state: each of its pages is mapped by it, and once."""
    return e[i, FOLIO] < 0 and e[i, ORDER] > 0


@inline
def folio_heads(e: ExtentTable, i: int, page: int) -> int:
    """How many folios begin before a page of the extent."""
    return (page + (1 << e[i, ORDER]) - 1) >> e[i, ORDER]


@inline
def folio_ends(e: ExtentTable, i: int, page: int) -> int:
    """How many folios end before a page of the extent."""
    return page >> e[i, ORDER]


@inline
def folios_in(e: ExtentTable, i: int, offset: int, pages: int) -> int:
    """How many folios some pages of the extent lie in."""
    return folio_heads(e, i, offset + pages) - folio_ends(e, i, offset)
