# SPDX-License-Identifier: Apache-2.0
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

FORMAT_VERSION: Final = 2

FIRST_VERSION: Final = 1
"""The oldest version that is still read.

It has no kind `marker` (markers are among its `swap` rows), no column `memcg`, and does not say by how much
rows and figures differ.
"""

KINDS: Final = ("page", "pmd", "hugetlb", "special", "swap", "marker")
PAGE, PMD, HUGETLB, SPECIAL, SWAP, MARKER = range(6)
"""Codes of the kinds, their places in `KINDS`.

`swap` lies in a swap area. `marker` is every other entry that is neither empty nor present: guard regions,
markers of userfaultfd, migration entries, hardware poison.
"""

MAX_PAGE_NUMBER: Final = 1 << 52
"""Page numbers, counts and swap offsets are below this on every 64-bit architecture."""

PERMISSIONS: Final = tuple(f"{r}{w}{x}{s}" for r in "r-" for w in "w-" for x in "x-" for s in "ps")
"""Permissions of a VMA, as in /proc/PID/maps."""

VMA_FLAGS: Final = "^([a-z0-9?]{2}( [a-z0-9?]{2})*)?$"
"""VmFlags of smaps: words of two letters."""

MAX_FOLIO_BYTES: Final = 16 << 30
"""The largest folio of any architecture: a 16 GiB huge page."""

MAX_ORDER: Final = 40
"""Beyond any folio; keeps a damaged order from overflowing before it is refused."""

COLUMNS: Final[dict[str, str]] = {
    # address space and process
    "mm": "uint32",
    "pid": "uint32",
    "comm": "text",
    # VMA: index in the address space, place, /proc/PID/maps permissions, smaps VmFlags, file or [heap]
    "vma": "uint32",
    "vma_start": "uint64",
    "vma_pages": "uint64",
    "vma_perms": "text",
    "vma_flags": "text",
    "vma_name": "text",
    # extent: first virtual page, PTEs (of a PMD mapping: its pages), what it is, first pfn or swap offset
    # (0 for a marker)
    "vpn": "int64",
    "pages": "uint32",
    "kind": "text",
    "pfn": "int64",
    # pagemap bits 61, 56, 55, 57
    "file": "bool",
    "exclusive": "bool",
    "soft_dirty": "bool",
    "uffd_wp": "bool",
    # of the folio's head page
    "kpageflags": "uint64",
    # of each page: mappings by anyone (kpagecount), mappings by this address space
    "mapcount": "uint32",
    "own": "uint32",
    # dirty in the PTE
    "dirty": "bool",
    # head pfn (of order-0 neighbours: the first); the folio has 2^order pages
    "folio": "int64",
    "order": "uint8",
    # pages of the whole folio mapped at all; sum of their mapcounts
    "folio_mapped": "uint32",
    "folio_mapcount": "uint64",
    # inode number of the memory cgroup that the folio is charged to (kpagecgroup); 0: none, or not known
    "memcg": "uint64",
}
"""Column -> type. Text repeats from row to row and is stored as a dictionary.

Plain names, so that a capture need not wait for polars to load.
"""

OPTIONAL: Final = ("memcg",)
"""Columns that a file may lack; they read as 0."""


def ptes_per_table(page_size: int) -> int:
    """Entries of one page-table page: entries are 8 bytes wide on every 64-bit architecture."""
    return page_size // 8


def utf8(name: str) -> str:
    """A name as Python decodes bytes of the system (surrogateescape), with what is not UTF-8 as escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
