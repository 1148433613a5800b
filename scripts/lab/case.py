# SPDX-License-Identifier: Apache-2.0
"""A case folder: the dump of one process and what the kernel did at its exit, laid out as the truth cases."""

import gzip
import json
import re
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from tarfile import TarFile, TarInfo
from typing import Any, NamedTuple

import numpy as np

from lab import pages
from lab.counts import NoExitError, Observed, observe
from lab.errors import LabError
from lab.trace import LostEventsError, check_stats, events
from replay.trace.kpageflags import KPF_COMPOUND_HEAD, KPF_HUGE, bit
from replay.validate.tracefs import Format, parse_format

_TEXTS = ("maps", "smaps", "status", "comm", "pagemap_scan")
FREE_TABLES = "tlb_remove_table_rcu"
_FUNCTION = re.compile(r"^([0-9a-f]+) [tT] (\S+)$", re.MULTILINE)
_WORDS = ("pagemap", "kpageflags", "kpagecount")


class Boot(NamedTuple):
    """What the guest said of its kernel.

    probed: event -> symbol, of the probes that the kernel accepted. formats: of the events, by their numbers.
    functions: names of all that it has. struct_pages: the address of that of frame 0. free_tables: the
    address of the function that frees a batch of page tables for RCU; -1 where the kernel has none.
    """

    release: str
    probed: dict[str, str]
    formats: dict[int, Format]
    struct_pages: int
    page_size: int
    free_tables: int
    functions: frozenset[str]

    @property
    def version(self) -> tuple[int, int]:
        """(6, 12) for 6.12.x."""
        major, minor = self.release.split(".")[:2]
        return int(major), int(minor.split("-")[0])


class Attempt(NamedTuple):
    """One run of a case, as the guest wrote it: member name -> bytes."""

    case: str
    number: int
    files: dict[str, bytes]

    @property
    def moved(self) -> dict[str, int]:
        """Counters of background work that moved while the process was held: name -> by how much."""
        lines = self.files.get("moved", b"").decode().splitlines()
        return {name: int(by) for name, by in (line.split() for line in lines)}


class Evidence(NamedTuple):
    """What explains a difference, beside expected.json.

    moved: counters of background work that moved between dump and exit, in every attempt. references: of
    each page frame, as the kernel counted them at the dump. own: for each head page, the entries of the
    process that map its folio (one for a PMD entry). mapcounts: kpagecount as it would be without averages,
    for a kernel with CONFIG_NO_PAGE_MAPCOUNT.
    """

    moved: dict[str, int]
    references: np.ndarray
    own: np.ndarray
    mapcounts: np.ndarray | None = None


def contents(archive: TarFile, member: TarInfo) -> bytes:
    """The bytes of a file in an archive."""
    file = archive.extractfile(member)
    assert file is not None  # the guest writes no folders and no links
    return file.read()


def read_boot(archive: TarFile) -> Boot:
    """The members of boot/ and formats/."""
    texts = {
        member.name: contents(archive, member).decode()
        for member in archive
        if member.name.startswith(("boot/", "formats/"))
    }
    if "boot/done" not in texts:
        raise LabError("the guest's output is cut: the output disk is too small or the guest died")
    lines = (line.split() for line in texts["boot/probes"].splitlines())
    probed: dict[str, str] = {}
    for event, symbol, failed in lines:
        if failed == "0":
            probed.setdefault(event, symbol)
    formats = dict(parse_format(text) for name, text in texts.items() if name.startswith("formats/"))
    release, struct_pages = texts["boot/version"].split()[2], int(texts["boot/struct_pages"], 16)
    functions = {name: int(address, 16) for address, name in _FUNCTION.findall(texts["boot/kallsyms"])}
    return Boot(
        release,
        probed,
        formats,
        struct_pages,
        int(texts["boot/page_size"]),
        functions.get(FREE_TABLES, -1),
        frozenset(functions),
    )


def read_attempts(archive: TarFile) -> Iterator[Attempt]:
    """The attempts of all cases, in the order in which they ran."""
    current: Attempt | None = None
    for member in archive:
        if not member.name.startswith("cases/"):
            continue
        _, case, number, name = member.name.split("/")
        if current is None or (current.case, current.number) != (case, int(number)):
            if current:
                yield current
            current = Attempt(case, int(number), {})
        current.files[name] = contents(archive, member)
    if current:
        yield current


def write_case(
    attempt: Attempt, boot: Boot, machine: str, algorithm: str, averages: bool, folder: Path
) -> tuple[dict[str, Any], Evidence]:
    """Write the case folder -> its expected.json, the evidence. Raises LabError if events were lost.

    averages: whether kpagecount says averages for large folios (CONFIG_NO_PAGE_MAPCOUNT).
    """
    files = attempt.files
    flags = np.frombuffer(files["kpageflags.bin"], "<u8")
    layout = pages.layout_of(machine, boot.version)
    leaves = pages.decode(files["leaves.bin"], files["smaps"].decode(), flags, layout, boot.page_size)
    if not len(leaves.pte_vpn):
        raise LabError(f"{attempt.case}: the page tables could not be read through /proc/kcore")
    pid = int(files["pid"])
    try:
        check_stats(files["trace.stats"].decode())
        traced = events(files["trace.raw"], boot.formats, boot.page_size)
        observed = observe(traced, pid, boot.probed, leaves, flags, boot.struct_pages, boot.free_tables)
    except (LostEventsError, NoExitError) as error:
        raise LabError(f"{attempt.case}: the trace is not whole: {error}") from None
    folder.mkdir(parents=True)
    for name in _TEXTS:
        (folder / name).write_bytes(files[name])
    head = pages.heads(flags)
    references = np.frombuffer(files["refcounts.bin"], "<u4")
    own = np.bincount(head[leaves.mapped], minlength=len(flags))
    words = {name: files[f"{name}.bin"] for name in _WORDS}
    mapcounts = None
    if averages:
        counts = np.frombuffer(words["kpagecount"], "<u8")
        of_folios = np.frombuffer(files["mapcounts.bin"], "<i4").reshape(-1, 2)
        mapcounts = _mapcounts(counts, leaves, flags, head, of_folios)
    for name, data in words.items():
        with gzip.open(folder / f"{name}.bin.gz", "wb", compresslevel=1) as out:
            out.write(data)
    expected = _expected(observed, leaves, pid, boot, machine, algorithm)
    expected["mapcounts"] = "average" if averages else "precise"
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")
    return expected, Evidence(attempt.moved, references, own, mapcounts)


def _mapcounts(
    counts: np.ndarray, leaves: pages.Leaves, flags: np.ndarray, head: np.ndarray, of_folios: np.ndarray
) -> np.ndarray:
    """kpagecount with mapcounts for averages, of the large folios that the process maps.

    of_folios: _large_mapcount and _entire_mapcount by frame, in those of second pages; both begin at -1. The
    kernel does not count pages: each has the entries of the process that map it, and the head page, beside
    them, what all others have in the folio. A PMD mapping, which _large_mapcount counts once, maps each page.
    """
    entries = np.bincount(leaves.pte_pfn, minlength=len(counts)).astype(np.int64)
    for first in leaves.pmd_pfn:
        entries[head == head[first]] += 1
    own, size = np.zeros_like(entries), np.zeros_like(entries)
    np.add.at(own, head, entries)
    np.add.at(size, head, 1)
    wanted = (own > 0) & _has(flags, KPF_COMPOUND_HEAD) & ~_has(flags, KPF_HUGE)
    heads = np.flatnonzero(wanted)
    large, entire = of_folios[heads + 1].astype(np.int64).T + 1
    entries[heads] += large + entire * (size[heads] - 1) - own[heads]
    return np.where(wanted[head], entries, counts.astype(np.int64)).astype("<u8")


def _has(flags: np.ndarray, number: int) -> np.ndarray:
    return flags & np.uint64(bit(number)) != 0


def _expected(
    observed: Observed, leaves: pages.Leaves, pid: int, boot: Boot, machine: str, algorithm: str
) -> dict[str, Any]:
    folded = leaves.pte_contiguous
    return {
        "kernel": boot.release,
        "architecture": machine,
        "page_size": boot.page_size,
        "algorithm": algorithm,
        "pid": pid,
        "counters": observed.counters,
        "rmap_sizes": {str(size): calls for size, calls in observed.rmap_sizes.items()},
        "release_sizes": observed.release_sizes,
        "flush_groups": observed.flush_groups,
        "freed": observed.freed,
        "dirty_ptes": pages.runs(leaves.pte_vpn[leaves.pte_dirty_file]),
        "pmd_mapped": leaves.pmd_vpn.tolist(),
        "contiguous_ptes": None if folded is None else pages.runs(leaves.pte_vpn[folded]),
        "preempted": observed.preempted,
    }


def lay_out(case: Path, root: Path, expected: Mapping[str, Any], mapcounts: np.ndarray | None = None) -> int:
    """Lay a case folder out as a procfs tree with a sparse pagemap; returns the PID in it.

    mapcounts: instead of the kpagecount of the kernel, which may say averages.
    """
    home = root / str(expected["pid"])
    home.mkdir(parents=True)
    for name in _TEXTS:
        if (case / name).stat().st_size:
            shutil.copy(case / name, home)
    (root / "sys" / "kernel").mkdir(parents=True)
    (root / "sys" / "kernel" / "arch").write_text(expected["architecture"] + "\n")
    for name in ("kpageflags", "kpagecount"):
        (root / name).write_bytes(gzip.decompress((case / f"{name}.bin.gz").read_bytes()))
    if mapcounts is not None:
        (root / "kpagecount").write_bytes(mapcounts.tobytes())
    elif expected["mapcounts"] == "average":
        (root / "config.gz").write_bytes(gzip.compress(b"\nCONFIG_NO_PAGE_MAPCOUNT=y\n"))
    raw = gzip.decompress((case / "pagemap.bin.gz").read_bytes())
    page_size = expected["page_size"]
    with (home / "pagemap").open("wb") as out:
        at = 0
        while at < len(raw):
            start, count = struct.unpack_from("<QQ", raw, at)
            if count:
                out.seek(start // page_size * 8)
                out.write(raw[at + 16 : at + 16 + 8 * count])
            at += 16 + 8 * count
    return expected["pid"]
