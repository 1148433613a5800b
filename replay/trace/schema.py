"""The one definition of a trace: its columns, their types, units and meaning.

A trace has one row per *extent*: a longest sequence of PTEs adjacent in virtual and in
physical address, inside one VMA, one page-table page and one folio (or of neighbouring
order-0 folios), alike in every other column. Rows are ordered by address space, then by
address. A PMD mapping or a huge page of hugetlb whose pages differ in a column (`mapcount`,
`own`) is several rows; it is one mapping, counted at its first page.

Units: `vpn`, `pfn`, `vma_start` are page numbers, everything called pages counts base pages.
"""

from __future__ import annotations

from typing import Final

import polars as pl

FORMAT_VERSION: Final = 1

KINDS: Final = ("page", "pmd", "hugetlb", "special", "swap")
PAGE, PMD, HUGETLB, SPECIAL, SWAP = range(5)
"""Codes of the kinds, their places in `KINDS`."""

MAX_FOLIO_BYTES: Final = 16 << 30
"""The largest folio of any architecture: a 16 GiB huge page."""

Text = pl.Categorical()

SCHEMA: Final[dict[str, pl.DataType]] = {
    # address space and process
    "mm": pl.UInt32(),
    "pid": pl.UInt32(),
    "comm": Text,
    # VMA: index in the address space, place, /proc/PID/maps permissions, smaps VmFlags, file or [heap]
    "vma": pl.UInt32(),
    "vma_start": pl.UInt64(),
    "vma_pages": pl.UInt64(),
    "vma_perms": Text,
    "vma_flags": Text,
    "vma_name": Text,
    # extent: first virtual page, PTEs (of a PMD mapping: its pages), what it is, first pfn or swap offset
    "vpn": pl.Int64(),
    "pages": pl.UInt32(),
    "kind": Text,
    "pfn": pl.Int64(),
    # pagemap bits 61, 56, 55, 57
    "file": pl.Boolean(),
    "exclusive": pl.Boolean(),
    "soft_dirty": pl.Boolean(),
    "uffd_wp": pl.Boolean(),
    # of the folio's head page
    "kpageflags": pl.UInt64(),
    # of each page: mappings by anyone (kpagecount), mappings by this address space
    "mapcount": pl.UInt32(),
    "own": pl.UInt32(),
    # dirty in the PTE
    "dirty": pl.Boolean(),
    # head pfn (of order-0 neighbours: the first); the folio has 2^order pages
    "folio": pl.Int64(),
    "order": pl.UInt8(),
    # pages of the whole folio mapped at all; sum of their mapcounts
    "folio_mapped": pl.UInt32(),
    "folio_mapcount": pl.UInt64(),
}


def ptes_per_table(page_size: int) -> int:
    """Entries of one page-table page: entries are 8 bytes wide on every 64-bit architecture."""
    return page_size // 8
