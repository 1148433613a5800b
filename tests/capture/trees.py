# SPDX-License-Identifier: Apache-2.0
"""Procfs trees for tests: made up, or laid out from what real kernels showed."""

from __future__ import annotations

import gzip
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from replay.trace.kpageflags import KPF_ANON, KPF_COMPOUND_HEAD, KPF_COMPOUND_TAIL, KPF_ZERO_PAGE, bit

PRESENT, SWAP, FILE, GUARD, UFFD_WP, EXCLUSIVE, SOFT_DIRTY = (1 << n for n in (63, 62, 61, 58, 57, 56, 55))
HEAD, TAIL = bit(KPF_COMPOUND_HEAD), bit(KPF_COMPOUND_TAIL)

TRUTH = Path(__file__).parents[1] / "truth"


def truth_cases() -> list[str]:
    return sorted(str(path.parent.relative_to(TRUTH)) for path in TRUTH.glob("*/*/maps"))


def truth_file(case: Path, name: str) -> bytes:
    """A file of a truth case, which may be compressed."""
    if (case / name).exists():
        return (case / name).read_bytes()
    return gzip.decompress((case / f"{name}.gz").read_bytes())


def page_size_of(expected: dict) -> int:
    return expected.get("page_size", 4096)


def lay_out(case: Path, dest: Path) -> tuple[int, dict]:
    """A truth case as a procfs tree with sparse files; returns its PID and what the kernel did."""
    expected = json.loads(truth_file(case, "expected.json"))
    home = dest / str(expected["pid"])
    home.mkdir(parents=True)
    for name in ("maps", "smaps", "status", "pagemap_scan"):
        # PAGEMAP_SCAN exists since v6.7
        if name != "pagemap_scan" or (case / name).exists() or (case / f"{name}.gz").exists():
            (home / name).write_bytes(truth_file(case, name))
    for name in ("kpageflags", "kpagecount"):
        (dest / name).write_bytes(truth_file(case, f"{name}.bin"))
    if "architecture" in expected:
        (dest / "sys" / "kernel").mkdir(parents=True)
        (dest / "sys" / "kernel" / "arch").write_text(expected["architecture"] + "\n")
    if expected.get("mapcounts") == "average":
        (dest / "config.gz").write_bytes(gzip.compress(b"\nCONFIG_NO_PAGE_MAPCOUNT=y\n"))
    page_size = page_size_of(expected)
    raw = truth_file(case, "pagemap.bin")
    with (home / "pagemap").open("wb") as out:
        position = 0
        while position < len(raw):
            start, count = struct.unpack_from("<QQ", raw, position)
            position += 16
            if count:
                out.seek(start // page_size * 8)
                out.write(raw[position : position + 8 * count])
            position += 8 * count
    return expected["pid"], expected


def is_swap(word: int) -> bool:
    """Whether a pagemap word is of a page in a swap area: the last nine types are none."""
    return bool(word & SWAP) and not word & (PRESENT | GUARD) and word & 31 < 23


@dataclass
class FakeVma:
    start: int
    pages: int
    perms: str = "rw-p"
    flags: str = "rd wr mr mw me ac"
    name: str = ""
    page_size: int = 4096
    words: dict[int, int] = field(default_factory=dict)
    """Pagemap words by page number."""
    pmd: set[int] = field(default_factory=set)
    """First pages of PMD mappings."""


@dataclass
class FakeProcess:
    vmas: list[FakeVma]
    flags: np.ndarray
    """kpageflags, uint64 by frame; `counts` likewise."""
    counts: np.ndarray
    memcg: np.ndarray | None = None
    """kpagecgroup, uint64 by frame, which only heads of folios have."""
    pid: int = 4321
    page_tables_kb: int = 400
    scan: bool = True
    """Whether the tree has a `pagemap_scan` file."""
    config: str = ""
    """The kernel's configuration; empty: the tree has none."""

    def write(self, root: Path) -> Path:
        home = root / str(self.pid)
        home.mkdir(parents=True, exist_ok=True)
        self.flags.astype("<u8").tofile(root / "kpageflags")
        self.counts.astype("<u8").tofile(root / "kpagecount")
        if self.config:
            (root / "config.gz").write_bytes(gzip.compress(self.config.encode()))
        if self.memcg is not None:
            self.memcg.astype("<u8").tofile(root / "kpagecgroup")
        (home / "maps").write_text("".join(self._header(vma) for vma in self.vmas))
        (home / "smaps").write_text("".join(self._smaps(vma) for vma in self.vmas))
        (home / "status").write_text(self._status())
        with (home / "pagemap").open("wb") as out:
            for vma in self.vmas:
                for vpn, word in sorted(vma.words.items()):
                    out.seek(vpn * 8)
                    out.write(struct.pack("<Q", word))
        if self.scan:
            ranges = sorted(vpn for vma in self.vmas for vpn in vma.pmd)
            lines = (f"{vpn << 12:x}-{(vpn + 512) << 12:x} present huge\n" for vpn in ranges)
            (home / "pagemap_scan").write_text("".join(lines))
        return root

    def _normal(self, word: int) -> bool:
        if not word & PRESENT:
            return False
        flags = int(self.flags[word & ((1 << 55) - 1)])
        return bool(word & FILE or flags & bit(KPF_ANON)) and not flags & bit(KPF_ZERO_PAGE)

    def _header(self, vma: FakeVma) -> str:
        place = f"{vma.start << 12:08x}-{(vma.start + vma.pages) << 12:08x}"
        return f"{place} {vma.perms} 00000000 00:00 0{' ' * 20}{vma.name}\n"

    def _smaps(self, vma: FakeVma) -> str:
        normal = [word for word in vma.words.values() if self._normal(word)]
        hugetlb = "ht" in vma.flags.split()
        figures = {
            "Size": vma.pages,
            "Rss": 0 if hugetlb else len(normal),
            "Anonymous": 0 if hugetlb else sum(not word & FILE for word in normal),
            "AnonHugePages": 512 * len(vma.pmd),
            "Private_Hugetlb": len(normal) if hugetlb else 0,
            "Swap": sum(map(is_swap, vma.words.values())),
        }
        lines = [f"{name + ':':15} {pages * 4:8} kB" for name, pages in figures.items()]
        lines.insert(1, f"KernelPageSize: {vma.page_size // 1024:8} kB")
        return self._header(vma) + "\n".join(lines) + f"\nVmFlags: {vma.flags} \n"

    def _status(self) -> str:
        words = [word for vma in self.vmas for word in vma.words.values()]
        normal = [
            word
            for vma in self.vmas
            if "ht" not in vma.flags.split()
            for word in vma.words.values()
            if self._normal(word)
        ]
        figures = {
            "RssAnon": sum(not word & FILE for word in normal),
            "RssFile": sum(bool(word & FILE) for word in normal),
            "RssShmem": 0,
            "VmSwap": sum(map(is_swap, words)),
            "HugetlbPages": 0,
        }
        return (
            f"Name:\tfake\nState:\tS (sleeping)\nTgid:\t{self.pid}\nPid:\t{self.pid}\nTracerPid:\t0\n"
            f"VmSize:\t 100 kB\nVmPTE:\t{self.page_tables_kb:8} kB\n"
            + "".join(f"{name}:\t{pages * 4:8} kB\n" for name, pages in figures.items())
            + "Threads:\t1\n"
        )


def folio(flags: np.ndarray, head: int, order: int, word: int, *, on_tails: int | None = None) -> None:
    """Put a folio's flags in place; on_tails: what tails show, if not the same (v6.1)."""
    size = 1 << order
    flags[head : head + size] = word if on_tails is None else on_tails
    flags[head] = word
    if order:
        flags[head] |= np.uint64(HEAD)
        flags[head + 1 : head + size] |= np.uint64(TAIL)
