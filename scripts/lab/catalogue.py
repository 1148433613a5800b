"""The catalogue: address spaces that the guest builds, each in the small language of guest/workload.c.

One operation per line; addresses and sizes in pages of 4 KiB, addresses from a base that is 2 MiB aligned.
A specification that begins with `program` runs a program of the guest's root disk instead, one argument per
line. A case whose kernel has not got what it `need`s is skipped there.
"""

import random
from fnmatch import fnmatch

T = 512
"""Pages under one PMD entry: a table, or a huge page."""

MTHP = "need /sys/kernel/mm/transparent_hugepage/hugepages-64kB/enabled"
SHMEM_MTHP = "need /sys/kernel/mm/transparent_hugepage/hugepages-64kB/shmem_enabled"
XFS = "need /sys/fs/xfs/vdd"

FUZZ_SEEDS = range(1, 11)
FUZZ_MTHP_SEEDS = range(101, 109)
TINY_SIZES = (0, 5, 6, 7, 496, 507, 508, 509, 516, 9666, 9676, 9685, 9687, 9694, 9696, 9698, 20000)
"""Pages of a tiny process, which has 2 more and 9 page tables: gather entries around the bundle (8), one
batch (510) and a full gather (8 + 19 * 510; mainline fills each batch one slot earlier)."""


def _ops(*parts: str) -> str:
    return "\n".join(parts)


def _anon(at: int, pages: int, *before: str) -> str:
    """Private anonymous memory, `before` done between mapping and writing it."""
    return _ops(f"map {at} {pages} rw private", *before, f"write {at} {pages}")


def _thp(at: int, folios: int) -> str:
    return _anon(at, folios * T, f"advise {at} {folios * T} hugepage")


def _mapped(path: str, pages: int, how: str = "rw shared") -> str:
    """A new file, mapped whole at 0."""
    return _ops(f"file {path} {pages}", f"mapfile 0 {pages} {how} {path} 0")


def _mthp(kib: int, *ops: str) -> str:
    return _ops(MTHP, f"mthp {kib} always", *ops)


ANON = {
    "nothing": "",
    "anon_1000": _anon(0, 1000),
    "anon_gathers": _anon(100, 30000),
    "anon_sparse": _ops("map 0 6000 rw private", "write 0 6000 7"),
    "anon_one_per_table": _ops(f"map 0 {40 * T} rw private", f"write 0 {40 * T} {T}"),
    "anon_vmas": _ops(_anon(0, 900), *(f"protect {3 * i} 1 r" for i in range(300))),
    "anon_prot_none": _ops(_anon(0, 700), "protect 100 500 -"),
    "zero_page": _ops(
        *("map 0 300 rw private", "read 0 300", "write 100 50"),
        *(f"map {2 * T} {T} rw private", f"advise {2 * T} {T} hugepage", f"read {2 * T} 1"),
    ),
    "madv_free": _ops(_anon(0, 800), "advise 100 300 free", "write 150 20", "advise 500 100 cold"),
    "mremap_small": _ops(
        _anon(0, 900), "remap 0 200 3001", "remap 500 77 2001", "remap 300 100 5000 dontunmap"
    ),
    "mlock": _ops(_anon(0, 700), "lock 0 400"),
    "ksm": _ops(
        *("map 0 600 rw private", "advise 0 600 mergeable"),
        *("fill 0 300 7", "fill 300 100 9", "write 400 200", "ksm"),
    ),
    "uffd_wp": _ops(_anon(0, 600), "uffdwp 100 200"),
}

FORKS = {
    "fork_parent_exits": _ops(_anon(0, 3000), "fork"),
    "fork_child_exits": _ops(_anon(0, 3000), "follow"),
    "fork_child_wrote": _ops(_anon(0, 3000), "forkcow 500 1000 2"),
    "fork_exiting_wrote": _ops(_anon(0, 3000), "follow", "write 100 2000 3"),
    "fork_three": _ops(_anon(0, 1500), "fork", "forkcow 0 300 1", "fork", "write 200 300"),
}

FILES = {
    "file_private": _ops(_mapped("/disk/f", 1500, "rw private"), "read 0 1500", "write 300 200 3"),
    "file_around": _ops("file /disk/f 800", "mapfile 5 700 r private /disk/f 3", "read 5 700 40"),
    "file_read_ahead": _ops(
        "file /disk/f 900", "drop /disk/f", "mapfile 0 900 r private /disk/f 0", "read 0 900 50"
    ),
    "file_shared_clean": _ops(
        "file /disk/f 900", "sync /disk/f", "mapfile 0 900 rw shared /disk/f 0", "read 0 900"
    ),
    "file_shared_dirty": _ops(_mapped("/disk/f", 1600), "read 0 1600", "write 100 1200 3"),
    "file_dirty_synced": _ops(_mapped("/disk/f", 900), "write 0 900", "sync /disk/f", "write 50 20"),
    "file_dirty_readonly": _ops(_mapped("/disk/f", 700), "write 0 600", "protect 100 300 r"),
    "file_dirty_none": _ops(_mapped("/disk/f", 700), "write 0 600", "protect 0 700 -"),
    "file_twice": _ops(
        _mapped("/disk/f", 400), "mapfile 1000 300 r private /disk/f 50", "read 0 400", "read 1000 300"
    ),
    "dirty_over_batch": _ops(
        *(_anon(0, 400), "file /disk/f 600"),
        *(f"mapfile {2 * T} 600 rw shared /disk/f 0", f"write {2 * T} 600"),
    ),
    "dirty_late_in_table": _ops(
        *(_anon(0, 505), "file /disk/f 2048", f"mapfile {2 * T} 2048 rw shared /disk/f 0"),
        *(f"read {2 * T} 2048", f"write {2 * T + 511} 1537 {T}"),
    ),
    "dirty_gather_full": _ops(
        *(_anon(0, 9500), "file /disk/f 900"),
        *("mapfile 10000 900 rw shared /disk/f 0", "write 10000 900 2"),
    ),
}

SHMEM = {
    "shmem_anon": _ops("map 0 900 rw shared", "write 0 700", "read 700 100"),
    "shmem_memfd_twice": _ops(
        *("memfd m 800", "mapfile 0 800 rw shared m 0", "write 0 500"),
        *("mapfile 1000 300 rw shared m 400", "read 1000 300"),
        *("mapfile 2000 800 rw private m 0", "read 2000 800", "write 2100 90"),
    ),
    "shmem_fork": _ops("map 0 900 rw shared", "write 0 900", "fork"),
    "shmem_huge": _ops(
        f"sparse /huge/f {4 * T}", f"mapfile 0 {4 * T} rw shared /huge/f 0", f"write 0 {4 * T}"
    ),
    "shmem_huge_parts": _ops(
        *(f"sparse /huge/f {4 * T}", f"mapfile 0 {4 * T} rw shared /huge/f 0"),
        *(f"write 0 {2 * T}", f"read {2 * T} {T}"),
        *("mapfile 3001 300 r shared /huge/f 100", "read 3001 300"),
        *("mapfile 4000 700 rw private /huge/f 400", "read 4000 700", "write 4100 50"),
    ),
    "shmem_huge_unmapped": _ops(
        *(f"sparse /huge/f {3 * T}", f"mapfile 0 {3 * T} rw shared /huge/f 0", f"write 0 {3 * T}"),
        *("unmap 100 50", f"unmap {T + 500} 24"),
    ),
}

HUGETLB = {
    "hugetlb_private": _ops(f"map 0 {4 * T} rw private hugetlb", f"write 0 {3 * T} {T}", _anon(4 * T, 700)),
    "hugetlb_shared": _ops(f"map 0 {4 * T} rw shared hugetlb", f"write 0 {4 * T} {T}", _anon(4 * T, 100)),
    "hugetlb_fork": _ops(f"map 0 {4 * T} rw private hugetlb", f"write 0 {4 * T} {T}", "fork"),
}

_UNMAPPED = (
    *((0, 1), (T + 511, 1), (2 * T + 100, 200), (3 * T + 1, 511), (4 * T, 300)),
    *((5 * T + 2, 3), (5 * T + 10, 100), (6 * T, T)),
)
THP = {
    "thp_pmd": _thp(0, 12),
    "thp_pte": _ops(_thp(0, 6), "protect 5 1 r", *(f"protect {i * T + 7 * i} 1 r" for i in range(1, 5))),
    "thp_prot_none": _ops(_thp(0, 4), f"protect {T} {2 * T} -"),
    "thp_unmap_parts": _ops(_thp(0, 8), *(f"unmap {at} {pages}" for at, pages in _UNMAPPED)),
    "thp_dontneed_holes": _ops(_thp(0, 4), *(f"advise {i * 9} 2 dontneed" for i in range(200))),
    "thp_mremap": _ops(
        *(_thp(0, 6), f"remap 10 100 {20 * T + 3}", f"remap {T} {T} {24 * T + 256}"),
        *(f"remap {2 * T} {T} {30 * T}", f"remap {3 * T + 500} 100 {32 * T + 500}"),
    ),
    "thp_shuffled": _ops(_thp(0, 2), *(f"remap {8 * i} 8 {8 * T - 8 * (i + 1)}" for i in range(64))),
    "thp_fork": _ops(_thp(0, 6), "fork"),
    "thp_fork_unmap": _ops(_thp(0, 6), "fork", "unmap 100 300", f"unmap {T} 511", f"protect {3 * T + 9} 1 r"),
    "thp_fork_cow": _ops(_thp(0, 6), f"forkcow 0 {3 * T} 5", f"write {4 * T} 400 3"),
    "thp_child_exits": _ops(_thp(0, 6), "follow", f"write {T} 300 2", f"unmap {4 * T} 200"),
    "thp_collapsed": _ops(_anon(0, 4 * T), f"advise 0 {4 * T} collapse", f"unmap {T + 17} 30"),
    "thp_gathers": _ops(_thp(0, 24), *(f"protect {i * T + 200} 1 r" for i in range(24))),
    "thp_then_small": _ops(_thp(0, 3), _anon(3 * T, 9300), _thp(40 * T, 4)),
    "thp_uffd_wp": _ops(_thp(0, 4), "uffdwp 100 300", f"uffdwp {2 * T} {T}"),
    "thp_mlock": _ops(_thp(0, 3), f"lock 0 {2 * T}", f"protect {T + 3} 1 r"),
}

SWAP = {
    "swap_out": _ops(_anon(0, 1000), "advise 100 600 pageout", "sleep 100"),
    "swap_in": _ops(_anon(0, 1000), "advise 0 1000 pageout", "sleep 200", "read 100 500", "write 700 100"),
    "swap_thp": _ops(_thp(0, 4), f"advise 0 {2 * T} pageout", "sleep 200", f"read 0 {T}", f"read {T} 100 3"),
    "swap_shmem": _ops(
        "map 0 900 rw shared", "write 0 900", "advise 100 500 pageout", "sleep 200", "read 200 100"
    ),
    "swap_fork": _ops(_anon(0, 900), "fork", "advise 100 500 pageout", "sleep 200", "read 0 900 2"),
}

PINNED = {"pinned_pipe": _ops(_anon(0, 600), _thp(2 * T, 1), "pipe 100 40", f"pipe {2 * T + 7} 20")}

_SIZES = (16, 1024, 64, 512, 32, 256, 128)
MTHP_CASES = {
    **{f"mthp_{kib}k": _mthp(kib, _anon(0, 3 * 1024)) for kib in sorted(_SIZES)},
    "mthp_mixed": _ops(
        MTHP,
        *(
            _ops(f"mthp {kib} always", _anon(i * 2048, 700), f"mthp {kib} never")
            for i, kib in enumerate(_SIZES)
        ),
    ),
    "mthp_parts": _mthp(
        64, _anon(0, 2048), *(f"unmap {16 * i + i % 16} {1 + i % 5}" for i in range(0, 120, 3))
    ),
    "mthp_fork": _mthp(64, _anon(0, 2048), "fork"),
    "mthp_fork_cow": _mthp(64, _anon(0, 2048), "forkcow 0 1000 7", "write 900 500 5"),
    "mthp_child_exits": _mthp(32, _anon(0, 2048), "follow", "write 0 800 3", "unmap 1003 50"),
    "mthp_gathers": _mthp(16, _anon(0, 40000)),
    "mthp_batch_ends": _mthp(32, _anon(0, 8000), *(f"advise {17 * i} 1 dontneed" for i in range(400))),
    "mthp_protect": _mthp(128, _anon(0, 2048), *(f"protect {40 * i + 7} {1 + i % 9} r" for i in range(45))),
    "mthp_prot_none": _mthp(64, _anon(0, 1024), "protect 100 700 -"),
    "mthp_mremap": _mthp(256, _anon(0, 1024), "remap 20 100 3003", "remap 300 64 5000", "remap 500 1 6511"),
    "mthp_uffd_wp": _mthp(64, _anon(0, 1024), "uffdwp 37 300"),
    "mthp_swap": _mthp(64, _anon(0, 1024), "advise 0 700 pageout", "sleep 200", "read 100 200 3"),
    "mthp_mlock": _mthp(64, _anon(0, 1024), "lock 0 512", "unmap 30 5"),
    "mthp_shmem": _ops(
        SHMEM_MTHP, "mthp 64 always shmem", "map 0 1500 rw shared", "write 0 1500", "unmap 200 30"
    ),
    "mthp_shmem_dirty": _ops(
        *(SHMEM_MTHP, "mthp 256 always shmem", "memfd m 1400"),
        *("mapfile 0 1400 rw shared m 0", "write 0 1400 9"),
        *("mapfile 3000 900 rw shared m 100", "read 3000 900", "write 3100 40"),
    ),
}

XFS_CASES = {
    "xfs_large": _ops(XFS, _mapped("/xfs/f", 3000, "r shared"), "read 0 3000"),
    "xfs_large_dirty": _ops(XFS, _mapped("/xfs/f", 3000), "read 0 3000", "write 100 500 3", "write 2000 900"),
    "xfs_read_ahead": _ops(
        *(XFS, "file /xfs/f 3000", "drop /xfs/f", "mapfile 0 3000 rw private /xfs/f 0"),
        *("read 0 3000", "write 500 300 7"),
    ),
}


ARM64_CASES = {
    # more than the 509 page tables of one RCU batch
    "tables_by_rcu": _ops(f"map 0 {1100 * T} rw private noreserve", f"write 0 {1100 * T} {T}"),
    # blocks of contiguous entries: in two VMAs, moved, changed and changed back
    "contpte_vmas": _mthp(64, _anon(0, 1024), "lock 8 100", "lock 300 7", "lock 320 16"),
    "contpte_mremap": _mthp(
        256, _anon(0, 1024), "remap 24 100 3032", "remap 320 64 5001", "remap 512 8 6520"
    ),
    "contpte_changed": _mthp(
        128,
        *(_anon(0, 1024), "protect 0 256 r", "protect 0 256 rw"),
        *("protect 384 40 r", "protect 384 40 rw", "protect 600 8 r", "protect 600 8 rw"),
    ),
    "contpte_fork_cow": _mthp(256, _anon(0, 1024), "forkcow 100 300 3", "write 500 40"),
}


def _program(*words: str) -> str:
    return _ops("program", *words)


def _python(*statements: str) -> str:
    return _program("/usr/bin/python3", "-c", "; ".join(statements))


PROGRAMS = {
    **{f"tiny_{pages:05}": _program("/bin/tiny", str(pages)) for pages in TINY_SIZES},
    "bash": _program("/usr/bin/bash", "-c", 'for i in {1..3000}; do a[i]=$((i * i)); done; echo "${#a[@]}"'),
    "bash_fork": _program("/usr/bin/bash", "-c", "x=$(echo a; echo b); (exit 0) & wait"),
    "perl": _program("/usr/bin/perl", "-e", "my %h; $h{$_} = [$_, $_ * 2] for 1 .. 8000;"),
    "python": _python("import json", "json.dumps({str(i): list(range(i % 50)) for i in range(4000)})"),
    "python_threads": _python(
        "from threading import Thread",
        "threads = [Thread(target=bytearray, args=(5000000,)) for _ in range(6)]",
        "[thread.start() for thread in threads]",
        "[thread.join() for thread in threads]",
    ),
    "python_mmap": _python(
        "import mmap, time",
        "m = mmap.mmap(-1, 9 << 20, mmap.MAP_PRIVATE)",
        "m.madvise(14)",  # MADV_HUGEPAGE
        "m[:] = bytes(9 << 20)",
        "time.time()",  # reads a page of [vvar]
        "m.madvise(4, 1 << 20, 300 << 10)",  # MADV_DONTNEED
    ),
}


def fuzz(seed: int, mthp: bool) -> str:
    """A random mix of mappings and of what happens to them; the same for the same seed."""
    pick = random.Random(seed)
    lines = [MTHP] if mthp else []
    place = 0
    regions = []
    for number in range(pick.randint(4, 9)):
        pages = pick.choice((pick.randint(1, 80), pick.randint(200, 1200), pick.randint(1000, 4000)))
        place += pick.choice((1, 3, 100)) if pick.random() < 0.5 else -place % T
        kind = pick.choice(("anon", "anon", "thp", "file", "shared_file", "shmem", "huge_shmem"))
        lines += _fuzz_region(pick, kind, number, place, pages, mthp)
        regions.append((kind, place, pages))
        place += pages
    if pick.random() < 0.3:
        kind, at, pages = pick.choice(regions)
        lines.append(pick.choice(("fork", f"forkcow {at} {pages} {pick.randint(1, 9)}", "follow")))
    for kind, at, pages in regions:
        for _ in range(pick.randint(0, 5)):
            lines += _fuzz_change(pick, kind, at, pages)
    return "\n".join(lines)


def _fuzz_region(pick: random.Random, kind: str, number: int, at: int, pages: int, mthp: bool) -> list[str]:
    written = f"write {at} {pages} {pick.choice((1, 1, 1, 2, 5))}"
    if kind in ("anon", "thp"):
        size = pick.choice((16, 32, 64, 128, 256, 512, 1024))
        lines = [f"map {at} {pages} rw private"]
        if kind == "thp":
            lines.append(f"advise {at} {pages} hugepage")
        return [*lines, f"mthp {size} always", written, f"mthp {size} never"] if mthp else [*lines, written]
    if kind == "shmem":
        return [f"map {at} {pages} rw shared", written]
    path = f"/huge/{number}" if kind == "huge_shmem" else f"/disk/{number}"
    sharing = "private" if kind == "file" else "shared"
    made = f"sparse {path} {pages}" if kind == "huge_shmem" else f"file {path} {pages}"
    start = pick.randint(0, pages // 3)
    part = pages - start
    lines = [
        made,
        f"mapfile {at} {part} rw {sharing} {path} {start}",
        f"read {at} {part} {pick.choice((1, 3))}",
    ]
    if pick.random() < 0.6:
        first = pick.randint(0, part - 1)
        lines.append(f"write {at + first} {pick.randint(1, part - first)} {pick.choice((1, 2, 7))}")
    return lines


def _fuzz_change(pick: random.Random, kind: str, at: int, pages: int) -> list[str]:
    # An earlier change may have unmapped a part: what is done here works on unmapped addresses too, or maps
    # afresh.
    first = at + pick.randint(0, pages // 2)
    some = pick.randint(1, max(1, pages // 8))
    choice = pick.random()
    if choice < 0.5:
        return [f"unmap {first} {some}"]
    if choice < 0.8 or kind not in ("anon", "thp"):
        return [f"map {first} {some} rw private", f"read {first} {some} 2", f"write {first} {some} 3"]
    return [f"map {first} {some} r private", f"read {first} {some}"]


def catalogue(architecture: str) -> dict[str, str]:
    """Every case of an architecture, by Debian's name: name of the case -> specification."""
    cases = {
        **ANON,
        **FORKS,
        **FILES,
        **SHMEM,
        **HUGETLB,
        **THP,
        **SWAP,
        **PINNED,
        **MTHP_CASES,
        **XFS_CASES,
        **PROGRAMS,
        **(ARM64_CASES if architecture == "arm64" else {}),
    }
    cases.update({f"fuzz_{seed:02}": fuzz(seed, mthp=False) for seed in FUZZ_SEEDS})
    cases.update({f"fuzz_mthp_{seed - 100:02}": fuzz(seed, mthp=True) for seed in FUZZ_MTHP_SEEDS})
    return cases


def selected(patterns: list[str], architecture: str) -> dict[str, str]:
    """The cases whose names match one of the shell patterns."""
    return {
        name: spec
        for name, spec in catalogue(architecture).items()
        if any(fnmatch(name, pattern) for pattern in patterns)
    }
