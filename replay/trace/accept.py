# SPDX-License-Identifier: Apache-2.0
"""Whether a row says something possible: the rules of `check.py`, compiled, one row after the other.

These functions only tell that something is wrong. What it is, and where, `check.py` says.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from replay.jit.compiled import inline
from replay.trace.columns import Columns
from replay.trace.kpageflags import KPF_HUGE, KPF_ZERO_PAGE, bit
from replay.trace.schema import HUGETLB, MAX_ORDER, MAX_PAGE_NUMBER, PMD, SPECIAL, SWAP

HUGE_FLAG: Final = bit(KPF_HUGE)
ZERO_FLAG: Final = bit(KPF_ZERO_PAGE)


class Row(NamedTuple):
    """One row, in integers, named as in `Columns`, and what follows from it.

    last: the last page. size: pages of the folio. begins, ends: whether it has the first, or the last page of
    a huge mapping. is_huge_zero: it is the huge zero page, one PMD entry.
    """

    mm: int
    vma: int
    vma_start: int
    vma_end: int
    vma_perms: int
    vma_flags: int
    vma_name: int
    vpn: int
    pages: int
    kind: int
    pfn: int
    uffd_wp: int
    kpageflags: int
    mapcount: int
    own: int
    dirty: int
    folio: int
    order: int
    folio_mapped: int
    folio_mapcount: int
    memcg: int
    contiguous: int
    last: int
    size: int
    begins: bool
    ends: bool
    is_huge_zero: bool


@inline
def row_at(t: Columns, i: int, entries: int) -> Row:
    """Row i of a batch. entries: PTEs of a page-table page."""
    vpn, pfn, folio = t.vpn[i], t.pfn[i], t.folio[i]
    pages, kind = int(t.pages[i]), t.kind[i]
    order = min(int(t.order[i]), MAX_ORDER)
    size = 1 << order
    begins = False
    ends = False
    if kind == PMD:
        begins = vpn & (entries - 1) == 0
        ends = (vpn + pages) & (entries - 1) == 0
    elif kind == HUGETLB:
        begins = pfn == folio
        ends = pfn + pages == folio + size
    is_huge_zero = kind == SPECIAL and order > 0 and pages == entries and t.kpageflags[i] & ZERO_FLAG != 0
    return Row(
        int(t.mm[i]),
        int(t.vma[i]),
        t.vma_start[i],
        t.vma_start[i] + t.vma_pages[i],
        t.vma_perms[i],
        t.vma_flags[i],
        t.vma_name[i],
        vpn,
        pages,
        kind,
        pfn,
        int(t.uffd_wp[i]),
        t.kpageflags[i],
        int(t.mapcount[i]),
        int(t.own[i]),
        int(t.dirty[i]),
        folio,
        order,
        int(t.folio_mapped[i]),
        t.folio_mapcount[i],
        t.memcg[i],
        int(t.contiguous[i]),
        vpn + pages - 1,
        size,
        begins,
        ends,
        is_huge_zero,
    )


@inline
def is_possible(row: Row, entries: int, largest: int) -> bool:
    """The rules that look at one row. largest: the largest order of a folio."""
    if row.kind < 0 or row.vma_perms < 0 or row.vma_flags < 0 or row.pages == 0 or row.order > largest:
        return False
    for number in (row.vpn, row.pfn, row.folio):
        if not 0 <= number <= MAX_PAGE_NUMBER:
            return False
    if not (0 <= row.vma_start < MAX_PAGE_NUMBER and 0 <= row.vma_end - row.vma_start < MAX_PAGE_NUMBER):
        return False
    if row.vpn < row.vma_start or row.last >= row.vma_end:
        return False
    if row.kind != HUGETLB and (row.vpn ^ row.last) >= entries:
        return False
    if row.kind <= SPECIAL and row.order > 0:
        if row.folio & (row.size - 1) != 0 or row.pfn < row.folio:
            return False
        if row.pfn + row.pages > row.folio + row.size:
            return False
    if row.kind <= HUGETLB:
        return is_possible_mapping(row, entries)
    if row.dirty or row.mapcount or row.own or row.folio_mapped or row.folio_mapcount:
        return False
    if row.kind == SPECIAL:
        return True
    if row.kpageflags or row.order or row.memcg:
        return False
    return row.kind == SWAP or row.pfn == 0


@inline
def is_possible_mapping(row: Row, entries: int) -> bool:
    """The rules for a row of mapped pages."""
    if row.own == 0 or row.own > row.mapcount or row.folio_mapped == 0 or row.folio_mapped > row.size:
        return False
    if row.folio_mapcount < row.folio_mapped or row.folio_mapcount < row.mapcount:
        return False
    if row.folio_mapcount >= MAX_PAGE_NUMBER:
        return False
    if row.order == 0 and (row.folio_mapped != 1 or row.folio_mapcount != row.mapcount):
        return False
    if row.order == 0 and row.folio != row.pfn:
        return False
    if row.kind == HUGETLB:
        return row.order > 0
    if row.kpageflags & HUGE_FLAG:
        return False
    # a PMD mapping of order 0 is zone-device memory, or changed while it was read
    return row.kind != PMD or (row.size >= entries and not (row.begins and row.pfn & (entries - 1) != 0))


@inline
def can_follow(row: Row, before: Row) -> bool:
    """The rules about a row and the one before it."""
    goes_on = (
        row.kind == before.kind
        and row.folio == before.folio
        and row.order == before.order
        and row.vpn == before.last + 1
        and row.pfn == before.pfn + before.pages
        and row.vma == before.vma
        and row.mm == before.mm
        and not row.begins
    )
    if not goes_on and (lacks_first(row) or lacks_last(before)):
        return False
    if row.mm != before.mm:
        return row.mm > before.mm
    if row.vpn <= before.last or row.vma < before.vma:
        return False
    if row.vma != before.vma:
        return row.vma_start >= before.vma_end
    return (
        row.vma_start == before.vma_start
        and row.vma_end == before.vma_end
        and row.vma_perms == before.vma_perms
        and row.vma_flags == before.vma_flags
        and row.vma_name == before.vma_name
    )


@inline
def lacks_first(row: Row) -> bool:
    """Whether a row is of a huge mapping whose first pages come before."""
    return (row.kind == PMD or row.kind == HUGETLB) and not row.begins


@inline
def lacks_last(row: Row) -> bool:
    """Whether a row is of a huge mapping whose last pages are still to come."""
    return (row.kind == PMD or row.kind == HUGETLB) and not row.ends
