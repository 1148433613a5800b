# SPDX-License-Identifier: Apache-2.0
"""The catalogue: address spaces that the guest builds, each in the small language of guest/workload.c.

One operation per line; addresses and sizes in pages, addresses from a base that huge pages are aligned to.
A specification that begins with `program` runs a program of the guest's root disk instead, one argument per
line. A case whose kernel has not got what it `need`s is skipped there.
"""

import random
from fnmatch import fnmatch
from typing import NamedTuple

from lab.architecture import ARCHITECTURES
from replay.teardown.algorithms import ALGORITHMS, MMU_GATHER_BUNDLE, max_table_batch
from replay.teardown.contiguous import BLOCK
from replay.trace.schema import ptes_per_table

MTHP = "need /sys/kernel/mm/transparent_hugepage/hugepages-64kB/enabled"
SHMEM_MTHP = "need /sys/kernel/mm/transparent_hugepage/hugepages-64kB/shmem_enabled"
XFS = "need /sys/fs/xfs/vdd"

FUZZ_SEEDS = range(1, 11)
FUZZ_MTHP_SEEDS = range(101, 109)


class Sizes(NamedTuple):
    """What follows the page size: numbers of pages that the cases are built around.

    page: bytes of one. table: pages under one PMD entry: a page-table page, or a huge page. slots: of a batch
    of the gather. batches: of a gather. block: contiguous PTEs of arm64.
    """

    page: int
    table: int
    slots: int
    batches: int
    block: int

    @property
    def full(self) -> int:
        """Pages that fill a gather."""
        return MMU_GATHER_BUNDLE + self.batches * self.slots

    @property
    def tiny(self) -> list[int]:
        """Pages of a tiny process, which has 2 more and, with 4 KiB pages, 9 page tables.

        Gather entries around the bundle, one batch and a full gather; mainline fills each batch, and the
        bundle, one slot earlier.
        """
        mainline = self.full - self.batches - 1
        batch = [self.slots - less for less in (14, 3, 2, 1, -6)]
        gather = [mainline - 12, mainline - 2, *(self.full - less for less in (13, 11, 4, 2, 0))]
        return [0, 5, 6, 7, *batch, *gather, 20000]

    def kib(self, order: int) -> int:
        """The size of a folio, as the folders of multi-size THP are called."""
        return self.page << order >> 10


def sizes(page_size: int) -> Sizes:
    """The sizes for one page size."""
    pages = ALGORITHMS["baseline"]
    slots, batches = pages.slots_of_batch(page_size), pages.max_gather_batch_count(page_size)
    return Sizes(page_size, ptes_per_table(page_size), slots, batches, BLOCK[page_size])


def _ops(*parts: str) -> str:
    return "\n".join(parts)


def _anon(at: int, pages: int, *before: str) -> str:
    """Private anonymous memory, `before` done between mapping and writing it."""
    return _ops(f"map {at} {pages} rw private", *before, f"write {at} {pages}")


def _thp(t: int, at: int, folios: int) -> str:
    """Huge pages, of t pages each."""
    return _anon(at, folios * t, f"advise {at} {folios * t} hugepage")


def _mapped(path: str, pages: int, how: str = "rw shared") -> str:
    """A new file, mapped whole at 0."""
    return _ops(f"file {path} {pages}", f"mapfile 0 {pages} {how} {path} 0")


def _mthp(s: Sizes, order: int, *ops: str) -> str:
    return _ops(MTHP, f"mthp {s.kib(order)} always", *ops)


def _anon_cases(s: Sizes) -> dict[str, str]:
    """Anonymous memory."""
    t = s.table
    return {
        "nothing": "",
        "anon_1000": _anon(0, 1000),
        "anon_gathers": _anon(100, 30000),
        "anon_sparse": _ops("map 0 6000 rw private", "write 0 6000 7"),
        "anon_one_per_table": _ops(f"map 0 {40 * t} rw private", f"write 0 {40 * t} {t}"),
        "anon_vmas": _ops(_anon(0, 900), *(f"protect {3 * i} 1 r" for i in range(300))),
        "anon_prot_none": _ops(_anon(0, 700), "protect 100 500 -"),
        "zero_page": _ops(
            *("map 0 300 rw private", "read 0 300", "write 100 50"),
            *(f"map {2 * t} {t} rw private", f"advise {2 * t} {t} hugepage", f"read {2 * t} 1"),
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


def _file_cases(s: Sizes) -> dict[str, str]:
    """Page cache of ext4."""
    t = s.table
    return {
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
            *(_anon(0, s.slots - 110), "file /disk/f 600"),
            *(f"mapfile {2 * t} 600 rw shared /disk/f 0", f"write {2 * t} 600"),
        ),
        "dirty_late_in_table": _ops(
            *(_anon(0, s.slots - 5), f"file /disk/f {4 * t}", f"mapfile {2 * t} {4 * t} rw shared /disk/f 0"),
            *(f"read {2 * t} {4 * t}", f"write {3 * t - 1} {3 * t + 1} {t}"),
        ),
        "dirty_gather_full": _ops(
            *(_anon(0, s.full - 198), "file /disk/f 900"),
            *("mapfile 10000 900 rw shared /disk/f 0", "write 10000 900 2"),
        ),
    }


def _shmem_cases(s: Sizes) -> dict[str, str]:
    """Shared memory."""
    t = s.table
    return {
        "shmem_anon": _ops("map 0 900 rw shared", "write 0 700", "read 700 100"),
        "shmem_memfd_twice": _ops(
            *("memfd m 800", "mapfile 0 800 rw shared m 0", "write 0 500"),
            *("mapfile 1000 300 rw shared m 400", "read 1000 300"),
            *("mapfile 2000 800 rw private m 0", "read 2000 800", "write 2100 90"),
        ),
        "shmem_fork": _ops("map 0 900 rw shared", "write 0 900", "fork"),
        "shmem_huge": _ops(
            f"sparse /huge/f {4 * t}", f"mapfile 0 {4 * t} rw shared /huge/f 0", f"write 0 {4 * t}"
        ),
        "shmem_huge_parts": _ops(
            *(f"sparse /huge/f {4 * t}", f"mapfile 0 {4 * t} rw shared /huge/f 0"),
            *(f"write 0 {2 * t}", f"read {2 * t} {t}"),
            *(f"mapfile {5 * t + 441} 300 r shared /huge/f 100", f"read {5 * t + 441} 300"),
            *(f"mapfile {7 * t + 416} {t + 188} rw private /huge/f 400", f"read {7 * t + 416} {t + 188}"),
            f"write {7 * t + 516} 50",
        ),
        "shmem_huge_unmapped": _ops(
            *(f"sparse /huge/f {3 * t}", f"mapfile 0 {3 * t} rw shared /huge/f 0", f"write 0 {3 * t}"),
            *("unmap 100 50", f"unmap {t + 500} 24"),
        ),
    }


def _hugetlb_cases(s: Sizes) -> dict[str, str]:
    """Huge pages of hugetlb."""
    t = s.table
    return {
        "hugetlb_private": _ops(
            f"map 0 {4 * t} rw private hugetlb", f"write 0 {3 * t} {t}", _anon(4 * t, 700)
        ),
        "hugetlb_shared": _ops(f"map 0 {4 * t} rw shared hugetlb", f"write 0 {4 * t} {t}", _anon(4 * t, 100)),
        "hugetlb_fork": _ops(f"map 0 {4 * t} rw private hugetlb", f"write 0 {4 * t} {t}", "fork"),
    }


def _thp_cases(s: Sizes) -> dict[str, str]:
    """Huge pages, mapped by PMDs and by PTEs."""
    t = s.table
    unmapped = (
        *((0, 1), (2 * t - 1, 1), (2 * t + 100, 200), (3 * t + 1, t - 1), (4 * t, 300)),
        *((5 * t + 2, 3), (5 * t + 10, 100), (6 * t, t)),
    )
    return {
        "thp_pmd": _thp(t, 0, 12),
        "thp_pte": _ops(
            _thp(t, 0, 6), "protect 5 1 r", *(f"protect {i * t + 7 * i} 1 r" for i in range(1, 5))
        ),
        "thp_prot_none": _ops(_thp(t, 0, 4), f"protect {t} {2 * t} -"),
        "thp_unmap_parts": _ops(_thp(t, 0, 8), *(f"unmap {at} {pages}" for at, pages in unmapped)),
        "thp_dontneed_holes": _ops(_thp(t, 0, 4), *(f"advise {i * 9} 2 dontneed" for i in range(200))),
        "thp_mremap": _ops(
            *(_thp(t, 0, 6), f"remap 10 100 {20 * t + 3}", f"remap {t} {t} {24 * t + t // 2}"),
            *(f"remap {2 * t} {t} {30 * t}", f"remap {3 * t + 500} 100 {32 * t + 500}"),
        ),
        "thp_shuffled": _ops(
            _thp(t, 0, 2), *(f"remap {8 * i} 8 {8 * t - 8 * (i + 1)}" for i in range(t // 8))
        ),
        "thp_fork": _ops(_thp(t, 0, 6), "fork"),
        "thp_fork_unmap": _ops(
            _thp(t, 0, 6), "fork", "unmap 100 300", f"unmap {t} {t - 1}", f"protect {3 * t + 9} 1 r"
        ),
        "thp_fork_cow": _ops(_thp(t, 0, 6), f"forkcow 0 {3 * t} 5", f"write {4 * t} 400 3"),
        "thp_child_exits": _ops(_thp(t, 0, 6), "follow", f"write {t} 300 2", f"unmap {4 * t} 200"),
        "thp_collapsed": _ops(_anon(0, 4 * t), f"advise 0 {4 * t} collapse", f"unmap {t + 17} 30"),
        "thp_gathers": _ops(_thp(t, 0, 24), *(f"protect {i * t + 200} 1 r" for i in range(24))),
        "thp_then_small": _ops(_thp(t, 0, 3), _anon(3 * t, s.full - 398), _thp(t, 40 * t, 4)),
        "thp_uffd_wp": _ops(_thp(t, 0, 4), "uffdwp 100 300", f"uffdwp {2 * t} {t}"),
        "thp_mlock": _ops(_thp(t, 0, 3), f"lock 0 {2 * t}", f"protect {t + 3} 1 r"),
    }


def _swap_cases(s: Sizes) -> dict[str, str]:
    """Swapped out, and in again."""
    t = s.table
    return {
        "swap_out": _ops(_anon(0, 1000), "advise 100 600 pageout", "sleep 100"),
        "swap_in": _ops(
            _anon(0, 1000), "advise 0 1000 pageout", "sleep 200", "read 100 500", "write 700 100"
        ),
        "swap_thp": _ops(
            _thp(t, 0, 4), f"advise 0 {2 * t} pageout", "sleep 200", f"read 0 {t}", f"read {t} 100 3"
        ),
        "swap_shmem": _ops(
            "map 0 900 rw shared", "write 0 900", "advise 100 500 pageout", "sleep 200", "read 200 100"
        ),
        "swap_and_guards": _ops(
            _anon(0, 1000),
            "advise 100 300 guard",
            "advise 500 300 pageout",
            "sleep 200",
            "advise 600 30 guard",
            "read 500 50",
        ),
        "guards_huge": _ops(_thp(t, 0, 4), f"advise {t} {t} guard", f"advise {2 * t + 30} 60 guard"),
        "swap_fork": _ops(_anon(0, 900), "fork", "advise 100 500 pageout", "sleep 200", "read 0 900 2"),
    }


def _pinned_cases(s: Sizes) -> dict[str, str]:
    """References that procfs does not show."""
    t = s.table
    memory = _ops(_anon(0, 600), _thp(t, 2 * t, 1))
    return {
        "pinned_pipe": _ops(memory, "pipe 100 40", f"pipe {2 * t + 7} 20"),
        "pinned_ring": _ops(memory, "pin 100 40", f"pin {2 * t + 7} 20"),
        "pinned_unmapped": _ops(memory, f"pin {2 * t} {t}", f"unmap {2 * t + 9} {t // 2}", "unmap 0 50"),
        "pinned_mthp": _mthp(s, 4, _anon(0, 1024), "pin 100 40", "unmap 128 5", "pin 700 1"),
    }


def _lru_batch_cases(s: Sizes) -> dict[str, str]:
    """Folios that wait in a CPU's batch, which holds a reference: of MADV_COLD, of MADV_FREE, of mlock()."""
    t = s.table
    few, many = 20, 700  # less than a batch holds, and many batches
    huge = _thp(t, 0, 4)
    file = _mapped("/disk/f", 500)
    return {
        **{
            f"{name}_{how}": spec
            for name, advice in (("cold", "cold"), ("lazyfree", "free"))
            for how, spec in {
                "few": _ops(_anon(0, 400), f"advise 10 {few} {advice}"),
                "many": _ops(_anon(0, 800), f"advise 50 {many} {advice}"),
                "written": _ops(_anon(0, 800), f"advise 50 {many} {advice}", "write 60 300 3"),
                "thp": _ops(huge, f"advise 0 {t} {advice}", f"advise {2 * t + 100} 50 {advice}"),
                "fork": _ops(_anon(0, 400), f"advise 10 {few} {advice}", "fork"),
                "mthp": _mthp(s, 3, _anon(0, 1024), f"advise 100 300 {advice}", f"advise 1003 3 {advice}"),
            }.items()
        },
        "cold_shmem": _ops("map 0 500 rw shared", "write 0 500", f"advise 10 {few} cold"),
        "cold_then_free": _ops(_anon(0, 800), "advise 0 90 cold", "advise 100 90 free", "advise 60 80 cold"),
        "mlock_few": _ops(_anon(0, 400), f"lock 10 {few}"),
        "mlock_many": _ops(_anon(0, 800), f"lock 50 {many}"),
        "mlock_batches": _ops(_anon(0, 800), "lock 0 62", "lock 200 31", "lock 300 32"),
        "mlock_undone": _ops(_anon(0, 800), f"lock 50 {many}", "unlock 100 400"),
        "mlock_future": _ops("lockall", _anon(0, 500), _anon(1000, 70)),
        "mlock_file": _ops(file, "lock 0 300", "write 100 50"),
        "mlock_shmem": _ops("map 0 500 rw shared", "write 0 500", "lock 20 300"),
        "mlock_fork": _ops(_anon(0, 500), "lock 0 300", "fork"),
        "mlock_child_exits": _ops(_anon(0, 500), "follow", "lock 0 300"),
        "mlock_mixed": _ops(
            *(_anon(0, 300), _thp(t, t, 2), _anon(3 * t, 100)),
            *("lock 0 300", f"lock {t} {t}", f"lock {3 * t} 100", f"protect {t + 50} 1 r"),
        ),
        "mlock_thp_parts": _ops(huge, f"lock 100 {t}", f"lock {2 * t} {t}", f"unmap {2 * t + 30} 5"),
        "mlock_mthp_parts": _mthp(s, 4, _anon(0, 1024), "lock 8 300", "lock 500 100", "unmap 530 3"),
        "mlock_mthp_mixed": _ops(_mthp(s, 2, _anon(0, 512)), _anon(4000, 200), "lock 0 200", "lock 4000 100"),
    }


_ORDERS = (2, 8, 4, 7, 3, 6, 5)
"""Of multi-size THP, with pages of any size."""


def _mthp_cases(s: Sizes) -> dict[str, str]:
    """Multi-size THP."""
    return {
        **{
            f"mthp_{s.kib(order)}k": _mthp(s, order, _anon(0, 3 * 1024))
            for order in range(2, s.table.bit_length() - 1)
        },
        "mthp_mixed": _ops(
            MTHP,
            *(
                _ops(f"mthp {s.kib(order)} always", _anon(i * 2048, 700), f"mthp {s.kib(order)} never")
                for i, order in enumerate(_ORDERS)
            ),
        ),
        "mthp_parts": _mthp(
            s, 4, _anon(0, 2048), *(f"unmap {16 * i + i % 16} {1 + i % 5}" for i in range(0, 120, 3))
        ),
        "mthp_fork": _mthp(s, 4, _anon(0, 2048), "fork"),
        "mthp_fork_cow": _mthp(s, 4, _anon(0, 2048), "forkcow 0 1000 7", "write 900 500 5"),
        "mthp_child_exits": _mthp(s, 3, _anon(0, 2048), "follow", "write 0 800 3", "unmap 1003 50"),
        "mthp_gathers": _mthp(s, 2, _anon(0, 40000)),
        "mthp_batch_ends": _mthp(s, 3, _anon(0, 8000), *(f"advise {17 * i} 1 dontneed" for i in range(400))),
        "mthp_protect": _mthp(
            s, 5, _anon(0, 2048), *(f"protect {40 * i + 7} {1 + i % 9} r" for i in range(45))
        ),
        "mthp_prot_none": _mthp(s, 4, _anon(0, 1024), "protect 100 700 -"),
        "mthp_mremap": _mthp(
            s, 6, _anon(0, 1024), "remap 20 100 3003", "remap 300 64 5000", "remap 500 1 6511"
        ),
        "mthp_uffd_wp": _mthp(s, 4, _anon(0, 1024), "uffdwp 37 300"),
        "mthp_swap": _mthp(s, 4, _anon(0, 1024), "advise 0 700 pageout", "sleep 200", "read 100 200 3"),
        "mthp_mlock": _mthp(s, 4, _anon(0, 1024), "lock 0 512", "unmap 30 5"),
        "mthp_shmem": _ops(
            SHMEM_MTHP,
            f"mthp {s.kib(4)} always shmem",
            "map 0 1500 rw shared",
            "write 0 1500",
            "unmap 200 30",
        ),
        "mthp_shmem_dirty": _ops(
            *(SHMEM_MTHP, f"mthp {s.kib(6)} always shmem", "memfd m 1400"),
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


def _arm64_cases(s: Sizes) -> dict[str, str]:
    """What only arm64 has: page tables freed by RCU, contiguous PTEs."""
    k = s.block // 16
    order = s.block.bit_length() - 1
    # more than two batches of RCU
    tables = 2 * max_table_batch(s.page) + 82

    def blocks(more: int, *ops: str) -> str:
        """Folios of one block, or of 2^more, in 64 blocks; the operations count sixteenths of a block."""
        return _mthp(s, order + more, _anon(0, 64 * s.block), *(_scaled(each, k) for each in ops))

    half, pages, folio = s.block // 2, 23 * s.block, s.kib(order + 2)
    file = XFS, f"file /xfs/f {24 * s.block} {4 * s.block}"
    return {
        "tables_by_rcu": _ops(
            f"map 0 {tables * s.table} rw private noreserve", f"write 0 {tables * s.table} {s.table}"
        ),
        # blocks of contiguous entries: in two VMAs, moved, changed and changed back
        "contpte_vmas": blocks(0, "lock 8 100", "lock 300 7", "lock 320 16"),
        "contpte_mremap": blocks(2, "remap 24 100 3032", "remap 320 64 5001", "remap 512 8 6520"),
        "contpte_changed": blocks(
            1,
            *("protect 0 256 r", "protect 0 256 rw"),
            *("protect 384 40 r", "protect 384 40 rw", "protect 600 8 r", "protect 600 8 rw"),
        ),
        "contpte_fork_cow": _ops(blocks(2), f"forkcow {100 * k} {300 * k} 3", _scaled("write 500 40", k)),
        "contpte_parts": blocks(
            1, *(f"unmap {41 * i} {1 + i % 5}" for i in range(20)), "advise 900 9 dontneed"
        ),
        "contpte_prot_none": blocks(2, "protect 100 400 -"),
        "contpte_uffd_wp": blocks(2, "uffdwp 37 300"),
        # page cache and shared memory, in folios of four blocks: mapped from the middle of a block on
        "contpte_file": _ops(*file, f"mapfile {half} {pages} r shared /xfs/f {half}", f"read {half} {pages}"),
        "contpte_file_written": _ops(
            *file, f"mapfile {half} {pages} rw shared /xfs/f {half}", f"write {half} {pages}"
        ),
        "contpte_file_private": _ops(
            *(*file, f"mapfile {half} {pages} rw private /xfs/f {half}", f"read {half} {pages}"),
            f"write {10 * s.block} {s.block} 5",
        ),
        "contpte_shmem": _ops(
            *(SHMEM_MTHP, f"mthp {folio} always shmem", f"map 0 {pages} rw shared"),
            *(f"write 0 {pages}", f"unmap {9 * s.block + 3} 5"),
        ),
        "contpte_memfd": _ops(
            *(SHMEM_MTHP, f"mthp {folio} always shmem", f"memfd m {24 * s.block}"),
            *(f"mapfile {half} {pages} rw shared m {half}", f"read {half} {pages // 2}"),
            f"write {12 * s.block} {11 * s.block}",
        ),
        "hugetlb_contpte": _ops(
            f"hugepages {s.kib(order)} 12",
            f"map 0 {8 * s.block} rw private hugetlb={order + s.page.bit_length() - 1}",
            *(f"write 0 {6 * s.block} {s.block}", _anon(8 * s.block, 700)),
        ),
    }


def _scaled(operation: str, by: int) -> str:
    """An operation with all its numbers multiplied."""
    return " ".join(str(int(word) * by) if word.isdigit() else word for word in operation.split())


def _program(*words: str) -> str:
    return _ops("program", *words)


def _python(*statements: str) -> str:
    return _program("/usr/bin/python3", "-c", "; ".join(statements))


def _programs(s: Sizes) -> dict[str, str]:
    """Real programs, and one of a few pages."""
    mapped = 9 * s.table // 2
    return {
        **{f"tiny_{pages:05}": _program("/bin/tiny", str(pages)) for pages in s.tiny},
        "bash": _program(
            "/usr/bin/bash", "-c", 'for i in {1..3000}; do a[i]=$((i * i)); done; echo "${#a[@]}"'
        ),
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
            f"m = mmap.mmap(-1, {mapped * s.page}, mmap.MAP_PRIVATE)",
            "m.madvise(14)",  # MADV_HUGEPAGE
            f"m[:] = bytes({mapped * s.page})",
            "time.time()",  # reads a page of [vvar]
            f"m.madvise(4, {s.table // 2 * s.page}, {75 * s.page})",  # MADV_DONTNEED
        ),
    }


def fuzz(seed: int, s: Sizes, mthp: bool) -> str:
    """A random mix of mappings and of what happens to them; the same for the same seed."""
    pick = random.Random(seed)
    lines = [MTHP] if mthp else []
    place = 0
    regions = []
    for number in range(pick.randint(4, 9)):
        pages = pick.choice((pick.randint(1, 80), pick.randint(200, 1200), pick.randint(1000, 4000)))
        place += pick.choice((1, 3, 100)) if pick.random() < 0.5 else -place % s.table
        kind = pick.choice(("anon", "anon", "thp", "file", "shared_file", "shmem", "huge_shmem"))
        if kind in ("thp", "huge_shmem"):
            pages = pages * s.table // 512
        lines += _fuzz_region(pick, s, kind, number, place, pages, mthp)
        regions.append((kind, place, pages))
        place += pages
    if pick.random() < 0.3:
        kind, at, pages = pick.choice(regions)
        lines.append(pick.choice(("fork", f"forkcow {at} {pages} {pick.randint(1, 9)}", "follow")))
    for kind, at, pages in regions:
        for _ in range(pick.randint(0, 5)):
            lines += _fuzz_change(pick, kind, at, pages)
    return "\n".join(lines)


def _fuzz_region(
    pick: random.Random, s: Sizes, kind: str, number: int, at: int, pages: int, mthp: bool
) -> list[str]:
    written = f"write {at} {pages} {pick.choice((1, 1, 1, 2, 5))}"
    if kind in ("anon", "thp"):
        size = s.kib(pick.choice(range(2, 9)))
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


def catalogue(architecture: str, page_size: int = 4096) -> dict[str, str]:
    """Every case of an architecture, by Debian's name: name of the case -> specification."""
    s = sizes(page_size)
    cases = {
        **_anon_cases(s),
        **FORKS,
        **_file_cases(s),
        **_shmem_cases(s),
        **_hugetlb_cases(s),
        **_thp_cases(s),
        **_swap_cases(s),
        **_pinned_cases(s),
        **_lru_batch_cases(s),
        **_mthp_cases(s),
        **XFS_CASES,
        **_programs(s),
        **(_arm64_cases(s) if architecture == "arm64" else {}),
    }
    cases.update({f"fuzz_{seed:02}": fuzz(seed, s, mthp=False) for seed in FUZZ_SEEDS})
    cases.update({f"fuzz_mthp_{seed - 100:02}": fuzz(seed, s, mthp=True) for seed in FUZZ_MTHP_SEEDS})
    return cases


def selected(patterns: list[str], architecture: str, page_size: int = 4096) -> dict[str, str]:
    """The cases whose names match one of the shell patterns."""
    return {
        name: spec
        for name, spec in catalogue(architecture, page_size).items()
        if any(fnmatch(name, pattern) for pattern in patterns)
    }


def names(patterns: list[str], architecture: str) -> list[str]:
    """Names of the cases of all page sizes of an architecture that match one of the shell patterns."""
    found = (selected(patterns, architecture, size) for size in ARCHITECTURES[architecture].page_sizes)
    return list(dict.fromkeys(name for cases in found for name in cases))
