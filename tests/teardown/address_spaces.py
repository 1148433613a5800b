# SPDX-License-Identifier: Apache-2.0
"""Address spaces made up for tests: a list of `Piece`s is laid out page by page and becomes a trace."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import polars as pl
from hypothesis import strategies as st

from replay.trace.frame import SCHEMA, Trace
from replay.trace.kpageflags import (
    KPF_ANON,
    KPF_HUGE,
    KPF_LRU,
    KPF_MLOCKED,
    KPF_SWAPBACKED,
    KPF_SWAPCACHE,
    bit,
)
from replay.trace.metadata import AddressSpace, Metadata
from replay.trace.schema import ptes_per_table

UNCUT = 1 << 16
"""More pages than an extent can have."""
TYPES = {
    "anon": bit(KPF_ANON) | bit(KPF_SWAPBACKED) | bit(KPF_LRU),
    "swapcache": bit(KPF_ANON) | bit(KPF_SWAPBACKED) | bit(KPF_SWAPCACHE) | bit(KPF_LRU),
    "file": bit(KPF_LRU),
    "shmem": bit(KPF_SWAPBACKED) | bit(KPF_LRU),
}


@dataclass(frozen=True)
class Piece:
    """What comes next in an address space.

    what: `pages` (of folios of `order`, `count` pages from page `first` of the first folio on), `again` (the
    last `count` pages once more), `pmd`, `hugetlb`, `swap`, `special`, `marker`. gap: pages left out before
    it; stride: every so manieth page; new_vma, new_table: begins one. others: mappings by others of each
    `every`th page of the folios, whether we map it or not. cut: extents have at most so many pages. off_lru,
    mlocked: flags of its folios. locked: of a VMA that begins with it.
    """

    what: str = "pages"
    type: str = "anon"
    order: int = 0
    first: int = 0
    count: int = 1
    gap: int = 0
    stride: int = 1
    new_vma: bool = False
    new_table: bool = False
    others: int = 0
    every: int = 1
    dirty: int = 0
    uffd_wp: int = 0
    cut: int = UNCUT
    off_lru: bool = False
    mlocked: bool = False
    locked: bool = False


COUNTS = st.one_of(
    st.integers(1, 20),
    st.sampled_from([7, 8, 9, 30, 31, 32, 62, 93, 247, 254, 255, 256, 262, 263, 510, 512, 518]),
)


def pieces(counts: st.SearchStrategy[int] = COUNTS) -> st.SearchStrategy[Piece]:
    """Any piece."""
    return st.builds(
        Piece,
        what=st.sampled_from(
            ["pages"] * 8 + ["again"] * 3 + ["pmd", "pmd", "hugetlb", "swap", "special", "marker"]
        ),
        type=st.sampled_from(["anon", "anon", "anon", "swapcache", "file", "shmem"]),
        order=st.sampled_from([0, 0, 0, 1, 2, 3, 4, 5, 9]),
        first=st.integers(0, 520),
        count=counts,
        gap=st.sampled_from([0, 0, 0, 1, 3, 600]),
        stride=st.sampled_from([1, 1, 1, 2, 5]),
        new_vma=st.booleans(),
        new_table=st.sampled_from([False, False, True]),
        others=st.sampled_from([0, 0, 0, 1, 2]),
        every=st.integers(1, 5),
        dirty=st.sampled_from([0, 1, 3]),
        uffd_wp=st.sampled_from([0, 0, 0, 1, 3]),
        cut=st.sampled_from([UNCUT, UNCUT, 1, 7, 100]),
        off_lru=st.sampled_from([False, False, True]),
        mlocked=st.sampled_from([False, False, True]),
        locked=st.sampled_from([False, True]),
    )


@dataclass
class Entry:
    vpn: int
    vma: int
    kind: str
    pfn: int
    folio: int
    piece: Piece
    begins: bool
    locked: bool


class Layout:
    """Lays pieces out: entries in address order, and the folios behind them."""

    def __init__(self, page_size: int) -> None:
        self.table = ptes_per_table(page_size)
        self.pmd_order = self.table.bit_length() - 1
        self.entries: list[Entry] = []
        self.locked = False
        self.order: dict[int, int] = {}
        self.flags: dict[int, int] = {}
        self.others: Counter[int] = Counter()
        self.vpn = 1 << 20
        self.vma = 0
        self.next_pfn = 1 << 12

    def folio(self, piece: Piece, order: int, hugetlb: bool = False) -> int:
        size = 1 << order
        # order-0 pages are neighbours; a page between larger folios keeps them apart
        head = self.next_pfn if order == 0 else -(-(self.next_pfn + 1) // size) * size
        self.next_pfn = head + size
        self.order[head] = order
        self.flags[head] = TYPES["anon" if hugetlb and piece.type != "file" else piece.type]
        if piece.off_lru:
            self.flags[head] &= ~bit(KPF_LRU)
        if piece.mlocked:
            self.flags[head] |= bit(KPF_MLOCKED)
        if hugetlb:
            self.flags[head] |= bit(KPF_HUGE)
        if piece.others:
            for pfn in range(head, head + size, 1 if hugetlb else piece.every):
                self.others[pfn] += piece.others
        return head

    def add(self, piece: Piece) -> None:
        huge = piece.what in ("pmd", "hugetlb")
        if piece.new_vma:
            self.vma += 1
        if piece.new_vma or not self.entries:
            self.locked = piece.locked
        self.vpn += piece.gap
        if piece.new_table or huge:
            self.vpn = -(-self.vpn // self.table) * self.table
        if piece.what == "pages":
            self._pages(piece)
        elif piece.what == "again":
            for entry in [e for e in self.entries if e.kind == "page"][-piece.count :]:
                self._put(piece, "page", entry.pfn, entry.folio)
        elif piece.what == "pmd":
            self._huge(piece, "pmd", self._whole(piece))
        elif piece.what == "hugetlb":
            self._huge(piece, "hugetlb", self.folio(piece, self.pmd_order, hugetlb=True))
        else:
            for n in range(piece.count):
                place = 0 if piece.what == "marker" else 77 + n * piece.stride
                self._put(piece, piece.what, place, place)

    def _pages(self, piece: Piece) -> None:
        size = 1 << piece.order
        page = piece.first % size
        head = self.folio(piece, piece.order)
        for _ in range(piece.count):
            if page >= size:
                page %= size
                head = self.folio(piece, piece.order)
            self._put(piece, "page", head + page, head)
            page += piece.stride
            self.vpn += piece.stride - 1

    def _whole(self, piece: Piece) -> int:
        """A PMD-sized folio: that of the last entry, if there is one (then it is mapped by PTEs too)."""
        for entry in self.entries[-1:]:
            is_whole = self.order.get(entry.folio) == self.pmd_order
            if piece.count % 2 and is_whole and entry.kind in ("page", "pmd"):
                return entry.folio
        return self.folio(piece, self.pmd_order)

    def _huge(self, piece: Piece, kind: str, head: int) -> None:
        for n in range(self.table):
            self._put(piece, kind, head + n, head, begins=n == 0)

    def _put(self, piece: Piece, kind: str, pfn: int, folio: int, begins: bool = False) -> None:
        self.entries.append(Entry(self.vpn, self.vma, kind, pfn, folio, piece, begins, self.locked))
        self.vpn += 1

    # ------------------------------------------------------------------ entries -> extents

    def rows(self) -> list[dict]:
        own = Counter(e.pfn for e in self.entries if e.kind in ("page", "pmd", "hugetlb"))
        mapcount = {pfn: own[pfn] + self.others[pfn] for pfn in own | self.others}
        ends: dict[int, tuple[int, int]] = {}
        for e in self.entries:
            ends[e.vma] = (ends.get(e.vma, (e.vpn, 0))[0], e.vpn + 1)
        totals: dict[int, tuple[int, int]] = {}
        rows: list[dict] = []
        for e in self.entries:
            mapped = e.kind in ("page", "pmd", "hugetlb")
            order = self.order[e.folio] if mapped else 0
            if mapped and e.folio not in totals:
                counts = [mapcount.get(e.folio + n, 0) for n in range(1 << order)]
                totals[e.folio] = (sum(count > 0 for count in counts), sum(counts))
            row = {
                "vma": e.vma,
                "vma_start": ends[e.vma][0],
                "vma_pages": ends[e.vma][1] - ends[e.vma][0],
                "vma_flags": "rd wr lo" if e.locked else "rd wr",
                "vpn": e.vpn,
                "pages": 1,
                "kind": e.kind,
                "pfn": e.pfn,
                "uffd_wp": e.kind == "page" and _each(e.vpn, e.piece.uffd_wp),
                "kpageflags": self.flags[e.folio] if mapped else 0,
                "mapcount": mapcount[e.pfn] if mapped else 0,
                "own": own[e.pfn] if mapped else 0,
                "dirty": (
                    e.kind == "page"
                    and not self.flags[e.folio] & bit(KPF_ANON)
                    and _each(e.vpn, e.piece.dirty)
                ),
                "folio": e.folio,
                "order": order,
                "folio_mapped": totals[e.folio][0] if mapped else 0,
                "folio_mapcount": totals[e.folio][1] if mapped else 0,
            }
            if (
                rows
                and not e.begins
                and _joins(rows[-1], row, self.table)
                and rows[-1]["pages"] < e.piece.cut
            ):
                rows[-1]["pages"] += 1
            else:
                rows.append(row)
        return rows


LIKE = (
    "vma",
    "kind",
    "uffd_wp",
    "kpageflags",
    "mapcount",
    "own",
    "dirty",
    "order",
    "folio_mapped",
    "folio_mapcount",
)


def _each(vpn: int, period: int) -> bool:
    return period > 0 and vpn % period == 0


def _joins(last: dict, row: dict, table: int) -> bool:
    pages = last["pages"]
    return (
        all(last[name] == row[name] for name in LIKE)
        and (last["vpn"] + pages, last["pfn"] + pages) == (row["vpn"], row["pfn"])
        and (last["folio"] == row["folio"] or row["order"] == 0)
        and row["vpn"] % table != 0
    )


def trace_of(
    some: list[Piece], page_tables: int, architecture: str = "x86_64", page_size: int = 4096
) -> Trace:
    """Pieces -> a trace of one address space."""
    layout = Layout(page_size)
    for piece in some:
        layout.add(piece)
    rest = {
        "mm": 0,
        "pid": 1,
        "comm": "made-up",
        "vma_perms": "rw-p",
        "vma_name": "",
        "file": False,
        "exclusive": False,
        "soft_dirty": False,
        "memcg": 0,
    }
    rows = [rest | row for row in layout.rows()]
    frame = pl.DataFrame(rows, schema=SCHEMA) if rows else pl.DataFrame(schema=SCHEMA)
    spaces = (AddressSpace(1, "made-up", page_tables),)
    meta = Metadata(spaces, architecture=architecture, page_size=page_size)
    return Trace(frame.select(list(SCHEMA)), meta, "made-up")
