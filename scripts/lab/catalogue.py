"""The catalogue: address spaces that the guest builds, each in the small language of guest/workload.c.

One operation per line; addresses and sizes in pages of 4 KiB, addresses from a base that is 2 MiB aligned. A
specification that begins with `program` runs a program of the guest's root disk instead, one argument per line.
A case whose kernel has not got what it `need`s is skipped there.
"""

import random
from fnmatch import fnmatch

MTHP = "need /sys/kernel/mm/transparent_hugepage/hugepages-64kB/enabled"
SHMEM_MTHP = "need /sys/kernel/mm/transparent_hugepage/hugepages-64kB/shmem_enabled"
LARGE_FILE_FOLIOS = "need /sys/fs/xfs/vdd"
TABLE = 512  # pages under one PMD entry
FUZZ_SEEDS = range(1, 11)
FUZZ_MTHP_SEEDS = range(101, 109)
# Total gather entries around the bundle (8), one batch (510) and a full gather (8 + 19 * 510; mainline fills its
# batches one earlier). A tiny process adds 2 pages and 9 page tables of its own.
TINY_SIZES = (0, 5, 6, 7, 496, 507, 508, 509, 516, 9666, 9676, 9685, 9687, 9694, 9696, 9698, 20000)


def _anon(at: int, pages: int, *more: str) -> str:
    return "\n".join([f"map {at} {pages} rw private", *more, f"write {at} {pages}"])


def _thp(at: int, folios: int) -> str:
    return _anon(at, folios * TABLE, f"advise {at} {folios * TABLE} hugepage")


def _file(path: str, pages: int) -> str:
    return f"file {path} {pages}"


ANON = {
    "nothing": "",
    "anon_1000": _anon(0, 1000),
    "anon_gathers": _anon(100, 30000),
    "anon_sparse": "map 0 6000 rw private\nwrite 0 6000 7",
    "anon_one_per_table": f"map 0 {40 * TABLE} rw private\nwrite 0 {40 * TABLE} {TABLE}",
    "anon_vmas": _anon(0, 900) + "\n" + "\n".join(f"protect {3 * i} 1 r" for i in range(300)),
    "anon_prot_none": _anon(0, 700) + "\nprotect 100 500 -",
    "zero_page": f"map 0 300 rw private\nread 0 300\nwrite 100 50\nmap {2 * TABLE} {TABLE} rw private\n"
    f"advise {2 * TABLE} {TABLE} hugepage\nread {2 * TABLE} 1",
    "madv_free": _anon(0, 800) + "\nadvise 100 300 free\nwrite 150 20\nadvise 500 100 cold",
    "mremap_small": _anon(0, 900) + "\nremap 0 200 3001\nremap 500 77 2001\nremap 300 100 5000 dontunmap",
    "mlock": _anon(0, 700) + "\nlock 0 400",
    "ksm": "map 0 600 rw private\nadvise 0 600 mergeable\nfill 0 300 7\nfill 300 100 9\nwrite 400 200\nksm",
    "uffd_wp": _anon(0, 600) + "\nuffdwp 100 200",
}

FORKS = {
    "fork_parent_exits": _anon(0, 3000) + "\nfork",
    "fork_child_exits": _anon(0, 3000) + "\nfollow",
    "fork_child_wrote": _anon(0, 3000) + "\nforkcow 500 1000 2",
    "fork_exiting_wrote": _anon(0, 3000) + "\nfollow\nwrite 100 2000 3",
    "fork_three": _anon(0, 1500) + "\nfork\nforkcow 0 300 1\nfork\nwrite 200 300",
}

FILES = {
    "file_private": _file("/disk/f", 1500) + "\nmapfile 0 1500 rw private /disk/f 0\nread 0 1500\nwrite 300 200 3",
    "file_around": _file("/disk/f", 800) + "\nmapfile 5 700 r private /disk/f 3\nread 5 700 40",
    "file_read_ahead": _file("/disk/f", 900) + "\ndrop /disk/f\nmapfile 0 900 r private /disk/f 0\nread 0 900 50",
    "file_shared_clean": _file("/disk/f", 900) + "\nsync /disk/f\nmapfile 0 900 rw shared /disk/f 0\nread 0 900",
    "file_shared_dirty": _file("/disk/f", 1600)
    + "\nmapfile 0 1600 rw shared /disk/f 0\nread 0 1600\nwrite 100 1200 3",
    "file_dirty_synced": _file("/disk/f", 900)
    + "\nmapfile 0 900 rw shared /disk/f 0\nwrite 0 900\nsync /disk/f\nwrite 50 20",
    "file_dirty_readonly": _file("/disk/f", 700)
    + "\nmapfile 0 700 rw shared /disk/f 0\nwrite 0 600\nprotect 100 300 r",
    "file_dirty_none": _file("/disk/f", 700) + "\nmapfile 0 700 rw shared /disk/f 0\nwrite 0 600\nprotect 0 700 -",
    "file_twice": _file("/disk/f", 400)
    + "\nmapfile 0 400 rw shared /disk/f 0\nmapfile 1000 300 r private /disk/f 50\nread 0 400\nread 1000 300",
    "dirty_over_batch": _anon(0, 400) + "\n" + _file("/disk/f", 600)
    + f"\nmapfile {2 * TABLE} 600 rw shared /disk/f 0\nwrite {2 * TABLE} 600",
    "dirty_late_in_table": _anon(0, 505) + "\n" + _file("/disk/f", 2048)
    + f"\nmapfile {2 * TABLE} 2048 rw shared /disk/f 0\nread {2 * TABLE} 2048\nwrite {2 * TABLE + 511} 1537 {TABLE}",
    "dirty_gather_full": _anon(0, 9500) + "\n" + _file("/disk/f", 900)
    + "\nmapfile 10000 900 rw shared /disk/f 0\nwrite 10000 900 2",
}  # fmt: skip

SHMEM = {
    "shmem_anon": "map 0 900 rw shared\nwrite 0 700\nread 700 100",
    "shmem_memfd_twice": "memfd m 800\nmapfile 0 800 rw shared m 0\nwrite 0 500\n"
    "mapfile 1000 300 rw shared m 400\nread 1000 300\nmapfile 2000 800 rw private m 0\nread 2000 800\nwrite 2100 90",
    "shmem_fork": "map 0 900 rw shared\nwrite 0 900\nfork",
    "shmem_huge": f"sparse /huge/f {4 * TABLE}\nmapfile 0 {4 * TABLE} rw shared /huge/f 0\nwrite 0 {4 * TABLE}",
    "shmem_huge_parts": f"sparse /huge/f {4 * TABLE}\nmapfile 0 {4 * TABLE} rw shared /huge/f 0\nwrite 0 {2 * TABLE}\n"
    f"read {2 * TABLE} {TABLE}\nmapfile 3001 300 r shared /huge/f 100\nread 3001 300\n"
    f"mapfile 4000 700 rw private /huge/f 400\nread 4000 700\nwrite 4100 50",
    "shmem_huge_unmapped": f"sparse /huge/f {3 * TABLE}\nmapfile 0 {3 * TABLE} rw shared /huge/f 0\n"
    f"write 0 {3 * TABLE}\nunmap 100 50\nunmap {TABLE + 500} 24",
}

HUGETLB = {
    "hugetlb_private": f"map 0 {4 * TABLE} rw private hugetlb\nwrite 0 {3 * TABLE} {TABLE}\n"
    + _anon(4 * TABLE, 700),
    "hugetlb_shared": f"map 0 {4 * TABLE} rw shared hugetlb\nwrite 0 {4 * TABLE} {TABLE}\n"
    + _anon(4 * TABLE, 100),
    "hugetlb_fork": f"map 0 {4 * TABLE} rw private hugetlb\nwrite 0 {4 * TABLE} {TABLE}\nfork",
}

THP = {
    "thp_pmd": _thp(0, 12),
    "thp_pte": _thp(0, 6) + "\nprotect 5 1 r\n" + "\n".join(f"protect {i * TABLE + 7 * i} 1 r" for i in range(1, 5)),
    "thp_prot_none": _thp(0, 4) + f"\nprotect {TABLE} {2 * TABLE} -",
    "thp_unmap_parts": _thp(0, 8)
    + "".join(
        f"\nunmap {at} {n}"
        for at, n in (
            (0, 1), (TABLE + 511, 1), (2 * TABLE + 100, 200), (3 * TABLE + 1, 511), (4 * TABLE, 300),
            (5 * TABLE + 2, 3), (5 * TABLE + 10, 100), (6 * TABLE, TABLE),
        )
    ),
    "thp_dontneed_holes": _thp(0, 4) + "".join(f"\nadvise {i * 9} 2 dontneed" for i in range(200)),
    "thp_mremap": _thp(0, 6)
    + f"\nremap 10 100 {20 * TABLE + 3}\nremap {TABLE} {TABLE} {24 * TABLE + 256}\n"
    f"remap {2 * TABLE} {TABLE} {30 * TABLE}\nremap {3 * TABLE + 500} 100 {32 * TABLE + 500}",
    "thp_shuffled": _thp(0, 2) + "".join(f"\nremap {8 * i} 8 {8 * TABLE - 8 * (i + 1)}" for i in range(64)),
    "thp_fork": _thp(0, 6) + "\nfork",
    "thp_fork_unmap": _thp(0, 6) + f"\nfork\nunmap 100 300\nunmap {TABLE} 511\nprotect {3 * TABLE + 9} 1 r",
    "thp_fork_cow": _thp(0, 6) + f"\nforkcow 0 {3 * TABLE} 5\nwrite {4 * TABLE} 400 3",
    "thp_child_exits": _thp(0, 6) + f"\nfollow\nwrite {TABLE} 300 2\nunmap {4 * TABLE} 200",
    "thp_collapsed": _anon(0, 4 * TABLE) + f"\nadvise 0 {4 * TABLE} collapse\nunmap {TABLE + 17} 30",
    "thp_gathers": f"map 0 {24 * TABLE} rw private\nadvise 0 {24 * TABLE} hugepage\nwrite 0 {24 * TABLE}\n"
    + "\n".join(f"protect {i * TABLE + 200} 1 r" for i in range(24)),
    "thp_then_small": _thp(0, 3) + "\n" + _anon(3 * TABLE, 9300) + "\n" + _thp(40 * TABLE, 4),
    "thp_uffd_wp": _thp(0, 4) + f"\nuffdwp 100 300\nuffdwp {2 * TABLE} {TABLE}",
    "thp_mlock": _thp(0, 3) + f"\nlock 0 {2 * TABLE}\nprotect {TABLE + 3} 1 r",
}  # fmt: skip

SWAP = {
    "swap_out": _anon(0, 1000) + "\nadvise 100 600 pageout\nsleep 100",
    "swap_in": _anon(0, 1000) + "\nadvise 0 1000 pageout\nsleep 200\nread 100 500\nwrite 700 100",
    "swap_thp": _thp(0, 4) + f"\nadvise 0 {2 * TABLE} pageout\nsleep 200\nread 0 {TABLE}\nread {TABLE} 100 3",
    "swap_shmem": "map 0 900 rw shared\nwrite 0 900\nadvise 100 500 pageout\nsleep 200\nread 200 100",
    "swap_fork": _anon(0, 900) + "\nfork\nadvise 100 500 pageout\nsleep 200\nread 0 900 2",
}

PINNED = {
    "pinned_pipe": _anon(0, 600) + "\n" + _thp(2 * TABLE, 1) + f"\npipe 100 40\npipe {2 * TABLE + 7} 20"
}

MTHP_CASES = {
    **{
        f"mthp_{kib}k": f"{MTHP}\nmthp {kib} always\n" + _anon(0, 3 * 1024)
        for kib in (16, 32, 64, 128, 256, 512, 1024)
    },
    "mthp_mixed": f"{MTHP}\n"
    + "\n".join(f"mthp {kib} always\n" + _anon(i * 2048, 700) + f"\nmthp {kib} never" for i, kib in enumerate(
        (16, 1024, 64, 512, 32, 256, 128))),
    "mthp_parts": f"{MTHP}\nmthp 64 always\n" + _anon(0, 2048)
    + "".join(f"\nunmap {16 * i + i % 16} {1 + i % 5}" for i in range(0, 120, 3)),
    "mthp_fork": f"{MTHP}\nmthp 64 always\n" + _anon(0, 2048) + "\nfork",
    "mthp_fork_cow": f"{MTHP}\nmthp 64 always\n" + _anon(0, 2048) + "\nforkcow 0 1000 7\nwrite 900 500 5",
    "mthp_child_exits": f"{MTHP}\nmthp 32 always\n" + _anon(0, 2048) + "\nfollow\nwrite 0 800 3\nunmap 1003 50",
    "mthp_gathers": f"{MTHP}\nmthp 16 always\n" + _anon(0, 40000),
    "mthp_batch_ends": f"{MTHP}\nmthp 32 always\n" + _anon(0, 8000)
    + "".join(f"\nadvise {17 * i} 1 dontneed" for i in range(400)),
    "mthp_protect": f"{MTHP}\nmthp 128 always\n" + _anon(0, 2048)
    + "".join(f"\nprotect {40 * i + 7} {1 + i % 9} r" for i in range(45)),
    "mthp_prot_none": f"{MTHP}\nmthp 64 always\n" + _anon(0, 1024) + "\nprotect 100 700 -",
    "mthp_mremap": f"{MTHP}\nmthp 256 always\n" + _anon(0, 1024) + "\nremap 20 100 3003\nremap 300 64 5000\nremap 500 1 6511",
    "mthp_uffd_wp": f"{MTHP}\nmthp 64 always\n" + _anon(0, 1024) + "\nuffdwp 37 300",
    "mthp_swap": f"{MTHP}\nmthp 64 always\n" + _anon(0, 1024) + "\nadvise 0 700 pageout\nsleep 200\nread 100 200 3",
    "mthp_mlock": f"{MTHP}\nmthp 64 always\n" + _anon(0, 1024) + "\nlock 0 512\nunmap 30 5",
    "mthp_shmem": f"{SHMEM_MTHP}\nmthp 64 always shmem\nmap 0 1500 rw shared\nwrite 0 1500\nunmap 200 30",
    "mthp_shmem_dirty": f"{SHMEM_MTHP}\nmthp 256 always shmem\nmemfd m 1400\nmapfile 0 1400 rw shared m 0\n"
    "write 0 1400 9\nmapfile 3000 900 rw shared m 100\nread 3000 900\nwrite 3100 40",
    "xfs_large": f"{LARGE_FILE_FOLIOS}\nfile /xfs/f 3000\nmapfile 0 3000 r shared /xfs/f 0\nread 0 3000",
    "xfs_large_dirty": f"{LARGE_FILE_FOLIOS}\nfile /xfs/f 3000\nmapfile 0 3000 rw shared /xfs/f 0\nread 0 3000\n"
    "write 100 500 3\nwrite 2000 900",
    "xfs_read_ahead": f"{LARGE_FILE_FOLIOS}\nfile /xfs/f 3000\ndrop /xfs/f\nmapfile 0 3000 rw private /xfs/f 0\n"
    "read 0 3000\nwrite 500 300 7",
}  # fmt: skip

_PYTHON = "program\n/usr/bin/python3\n-c\n"
PROGRAMS = {
    **{f"tiny_{pages:05}": f"program\n/bin/tiny\n{pages}" for pages in TINY_SIZES},
    "bash": 'program\n/usr/bin/bash\n-c\nfor i in {1..3000}; do a[i]=$((i * i)); done; echo "${#a[@]}"',
    "bash_fork": "program\n/usr/bin/bash\n-c\nx=$(echo a; echo b); (exit 0) & wait",
    "perl": "program\n/usr/bin/perl\n-e\nmy %h; $h{$_} = [$_, $_ * 2] for 1 .. 8000;",
    "python": _PYTHON + "import json; json.dumps({str(i): list(range(i % 50)) for i in range(4000)})",
    "python_threads": _PYTHON + "import threading; a = [threading.Thread(target=bytearray, args=(5000000,)) "
    "for _ in range(6)]; [t.start() for t in a]; [t.join() for t in a]",
    "python_mmap": _PYTHON + "import mmap, time; m = mmap.mmap(-1, 9 << 20, mmap.MAP_PRIVATE); "
    "m.madvise(14); m[:] = bytes(9 << 20); time.time(); m.madvise(4, 1 << 20, 300 << 10)",
}


def fuzz(seed: int, mthp: bool) -> str:
    """A random mix of mappings and of what happens to them; the same for the same seed."""
    pick = random.Random(seed)
    lines = [MTHP] if mthp else []
    place = 0
    regions = []
    for number in range(pick.randint(4, 9)):
        pages = pick.choice((pick.randint(1, 80), pick.randint(200, 1200), pick.randint(1000, 4000)))
        place += pick.choice((1, 3, 100)) if pick.random() < 0.5 else -place % TABLE
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
    # Only the first two thirds of a region are sure to be mapped, and an earlier change may have unmapped a part:
    # what follows works on unmapped addresses too (munmap) or maps afresh.
    first = at + pick.randint(0, pages // 2)
    some = pick.randint(1, max(1, pages // 8))
    choice = pick.random()
    if choice < 0.5:
        return [f"unmap {first} {some}"]
    if choice < 0.8 or kind not in ("anon", "thp"):
        return [f"map {first} {some} rw private", f"read {first} {some} 2", f"write {first} {some} 3"]
    return [f"map {first} {some} r private", f"read {first} {some}"]


def catalogue() -> dict[str, str]:
    """Every case: name -> specification."""
    cases = {**ANON, **FORKS, **FILES, **SHMEM, **HUGETLB, **THP, **SWAP, **PINNED, **MTHP_CASES, **PROGRAMS}
    cases.update({f"fuzz_{seed:02}": fuzz(seed, mthp=False) for seed in FUZZ_SEEDS})
    cases.update({f"fuzz_mthp_{seed - 100:02}": fuzz(seed, mthp=True) for seed in FUZZ_MTHP_SEEDS})
    return cases


def selected(patterns: list[str]) -> dict[str, str]:
    """The cases whose names match one of the shell patterns."""
    return {
        name: spec
        for name, spec in catalogue().items()
        if any(fnmatch(name, pattern) for pattern in patterns)
    }
