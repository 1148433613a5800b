# SPDX-License-Identifier: Apache-2.0
"""A saved procfs tree read the slow, literal way: one page at a time, plain Python, no NumPy operations."""

from __future__ import annotations

import gzip
import struct
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl

from replay.trace.kpageflags import (
    KPF_ANON,
    KPF_COMPOUND_HEAD,
    KPF_COMPOUND_TAIL,
    KPF_DIRTY,
    KPF_HUGE,
    KPF_IDLE,
    KPF_NOPAGE,
    KPF_ZERO_PAGE,
    bit,
)

PER_PAGE = [
    *("vma", "vma_start", "vma_pages", "vma_perms", "vma_flags", "vma_name", "kind", "pfn"),
    *("file", "exclusive", "soft_dirty", "uffd_wp", "kpageflags", "mapcount", "own", "dirty"),
    *("folio", "order", "folio_mapped", "folio_mapcount", "memcg"),
]


def pages(
    root: Path, pid: int, pmd: set[int], dirty: list[list[int]] | None = None, page_size: int = 4096
) -> dict[int, dict[str, Any]]:
    """What a trace says of each page: {vpn: {column: value}}.

    pmd: first pages of PMD mappings. dirty: [[first page, pages], ...]; None: by the rule.
    """
    flags, counts = (words(root / name) for name in ("kpageflags", "kpagecount"))
    memcg = words(root / "kpagecgroup") if (root / "kpagecgroup").exists() else []
    vmas = read_smaps(root / str(pid) / "smaps", page_size)
    is_dirty = {vpn for first, n in dirty or [] for vpn in range(first, first + n)}
    by_pmd = {vpn for first in pmd for vpn in range(first, first + page_size // 8)}
    found: dict[int, dict[str, Any]] = {}
    known: dict[int, tuple[int, int]] = {}

    def folio_of(frame: int) -> tuple[int, int]:
        """As `folio`, which is asked once for each folio."""
        if frame not in known:
            head, order = folio(frame, flags)
            known.update(dict.fromkeys(range(head, head + (1 << order)), (head, order)))
        return known[frame]

    for number, vma in enumerate(vmas):
        for vpn, word in vma_words(root / str(pid) / "pagemap", vma).items():
            found[vpn] = page(vpn, word, number, vma, flags, folio_of, vpn in by_pmd, page_size // 8)
            if dirty is not None:
                found[vpn]["dirty"] = vpn in is_dirty and found[vpn]["kind"] in ("page", "pmd", "hugetlb")
    own = Counter(row["pfn"] for row in found.values() if row["kind"] in ("page", "pmd", "hugetlb"))
    raised = dict(enumerate(counts))
    for frame, number in own.items():
        raised[frame] = max(number, raised.get(frame, 0))
    if has_averages(root):
        for head, order in alone(found):
            raised.update((frame, own[frame]) for frame in range(head, head + (1 << order)))

    @cache
    def totals(head: int, order: int) -> tuple[int, int]:
        """Of a folio: pages that are mapped, and the sum of their mapcounts."""
        mapcounts = [raised.get(frame, 0) for frame in range(head, head + (1 << order))]
        return sum(mapcount > 0 for mapcount in mapcounts), sum(mapcounts)

    for row in found.values():
        if row["kind"] in ("page", "pmd", "hugetlb"):
            row["own"] = own[row["pfn"]]
            row["mapcount"] = raised[row["pfn"]]
            row["folio_mapped"], row["folio_mapcount"] = totals(row["folio"], row["order"])
    for row in found.values():
        if row["kind"] not in ("swap", "marker"):
            row["memcg"] = memcg[row["folio"]] if row["folio"] < len(memcg) else 0
    return found


def has_averages(root: Path) -> bool:
    """Whether kpagecount of the tree says averages."""
    config = root / "config.gz"
    return config.exists() and b"\nCONFIG_NO_PAGE_MAPCOUNT=y\n" in gzip.decompress(config.read_bytes())


def alone(found: dict[int, dict[str, Any]]) -> set[tuple[int, int]]:
    """(head, order) of the large folios of which every entry says that nobody else maps them."""
    entries = [row for row in found.values() if row["kind"] in ("page", "pmd") and row["order"]]
    others = {row["folio"] for row in entries if not row["exclusive"]}
    return {(row["folio"], row["order"]) for row in entries if row["folio"] not in others}


def page(
    vpn: int,
    word: int,
    number: int,
    vma: dict[str, Any],
    flags: list[int],
    folio_of: Callable[[int], tuple[int, int]],
    by_pmd: bool,
    entries: int,
) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(PER_PAGE, 0)
    row.update(
        vma=number,
        vma_start=vma["start"],
        vma_pages=vma["end"] - vma["start"],
        vma_perms=vma["perms"],
        vma_flags=vma["VmFlags"],
        vma_name=vma["name"],
        file=bool(word >> 61 & 1),
        exclusive=bool(word >> 56 & 1),
        soft_dirty=bool(word >> 55 & 1),
        uffd_wp=bool(word >> 57 & 1),
        dirty=False,
    )
    frame = word & (1 << 55) - 1
    if not word >> 63:
        # the last nine types are never swap areas
        is_marker = word >> 58 & 1 or frame & 31 >= 23
        row.update(kind="marker", pfn=0) if is_marker else row.update(kind="swap", pfn=frame >> 5)
        return row
    head, order = folio_of(frame)
    word_of_head = (flags[head] if head < len(flags) else bit(KPF_NOPAGE)) & ~bit(KPF_IDLE)
    anon = bool(word_of_head & bit(KPF_ANON))
    raw = bool({"pf", "io"} & set(vma["VmFlags"].split())) and vma["perms"][3] == "s"
    normal = (row["file"] or (anon and not raw)) and not word_of_head & bit(KPF_ZERO_PAGE)
    row.update(pfn=frame, kpageflags=word_of_head, order=order, folio=head)
    if not normal:
        row["kind"] = "special"
    elif "ht" in vma["VmFlags"].split() or word_of_head & bit(KPF_HUGE):
        row["kind"] = "hugetlb"
    elif by_pmd and 1 << order >= entries:
        row["kind"] = "pmd"
    else:
        row["kind"] = "page"
    shared = vma["perms"][1] == "w" and vma["perms"][3] == "s"
    row["dirty"] = bool(normal and not anon and shared and word_of_head & bit(KPF_DIRTY))
    return row


def folio(frame: int, flags: list[int]) -> tuple[int, int]:
    """(head, order) of the folio of a frame: from the head to the last tail."""
    if frame >= len(flags):
        return frame, 0
    head = frame
    while head and flags[head] & bit(KPF_COMPOUND_TAIL):
        head -= 1
    end = frame + 1
    while end < len(flags) and flags[end] & bit(KPF_COMPOUND_TAIL):
        end += 1
    size = end - head
    if not flags[head] & bit(KPF_COMPOUND_HEAD) or size & (size - 1) or head % size:
        return frame, 0
    return head, size.bit_length() - 1


def words(path: Path) -> list[int]:
    raw = path.read_bytes()
    return list(struct.unpack(f"<{len(raw) // 8}Q", raw))


def vma_words(path: Path, vma: dict[str, Any]) -> dict[int, int]:
    """Words of present and swapped pages of a VMA."""
    with path.open("rb") as file:
        file.seek(vma["start"] * 8)
        raw = file.read((vma["end"] - vma["start"]) * 8)
    values = struct.unpack(f"<{len(raw) // 8}Q", raw)
    return {vma["start"] + i: value for i, value in enumerate(values) if value >> 62}


def read_smaps(path: Path, page_size: int) -> list[dict[str, Any]]:
    vmas: list[dict[str, Any]] = []
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if "-" in key and " " in key:
            place, perms, *_, inode_and_name = line.split(" ", 4)
            first, last = (int(part, 16) // page_size for part in place.split("-"))
            name = inode_and_name.split(None, 1)[1] if len(inode_and_name.split()) > 1 else ""
            vmas.append({"start": first, "end": last, "perms": perms, "name": name})
        else:
            vmas[-1][key] = value.strip()
    return [vma for vma in vmas if vma["start"] * page_size < 1 << 63]


def expand(frame: pl.DataFrame) -> dict[int, dict[str, Any]]:
    """The rows of a trace, page by page."""
    found = {}
    for row in frame.iter_rows(named=True):
        for i in range(row["pages"]):
            one = {name: row[name] for name in PER_PAGE}
            one["pfn"] += i if row["kind"] != "marker" else 0
            if row["kind"] not in ("swap", "marker") and row["order"] == 0:
                one["folio"] = one["pfn"]
            found[row["vpn"] + i] = one
    return found


def joinable(frame: pl.DataFrame, entries: int = 512) -> list[int]:
    """Rows that could be one with the row before them: extents are the longest sequences."""
    kinds = ("page", "pmd", "hugetlb", "marker")
    rows = [row for row in frame.iter_rows(named=True) if row["kind"] in kinds]
    wrong = []
    for i in range(1, len(rows)):
        a, b = rows[i - 1], rows[i]
        alike = all(a[name] == b[name] for name in PER_PAGE if name not in ("pfn", "folio"))
        one_folio = a["folio"] == b["folio"] or (a["order"] == 0 and b["order"] == 0)
        adjacent = a["vpn"] + a["pages"] == b["vpn"] and (
            a["kind"] == "marker" or a["pfn"] + a["pages"] == b["pfn"]
        )
        one_table = a["vpn"] // entries == b["vpn"] // entries or a["kind"] == "hugetlb"
        if alike and one_folio and adjacent and one_table:
            wrong.append(i)
    return wrong
