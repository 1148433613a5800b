# SPDX-License-Identifier: Apache-2.0
"""The teardown algorithms as data: what a gather entry is, how the rmap goes, how entries are released.

An algorithm is one `Algorithm(...)`: three choices and the sizes and habits of its kernel. `reference.py` and
`machine.py` each have one loop that follows them; nothing else in the project knows an algorithm by its name.
Each rule that follows from a choice is one property here. Message ids are those of the linux-mm archives.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from enum import IntEnum
from typing import Final, Self

MMU_GATHER_BUNDLE: Final = 8
"""Slots of the bundle inside the mmu_gather itself: include/asm-generic/tlb.h."""
MAX_GATHER_ENTRIES: Final = 10000
"""Entries of all batches of a gather. The kernel has the number in MAX_GATHER_BATCH_COUNT, 10000 / slots."""
MAX_NR_FOLIOS_PER_FREE: Final = 512
"""Slots of a gather batch that are handed to the release at once: mm/mmu_gather.c."""
SWAP_CLUSTER_MAX: Final = 32
"""Entries after which release_pages() drops the lruvec lock: include/linux/swap.h."""
PAGEVEC_SIZE: Final = 31
"""Folios of a folio batch since v6.9, 15 before: include/linux/pagevec.h."""
BATCH_HEADER_BYTES: Final = 16
"""Bytes of a batch page before its slots: struct mmu_gather_batch."""
TABLE_BATCH_HEADER_BYTES: Final = 24
"""Bytes of a batch of page tables before its slots: struct mmu_table_batch."""


class Choice(IntEnum):
    """A choice of an algorithm. Each member has a text, which `replay algorithms` shows."""

    text: str

    def __new__(cls, number: int, text: str) -> Self:
        """Make a member with its number, which the machine uses, and its text."""
        member = int.__new__(cls, number)
        member._value_ = number
        member.text = text
        return member

    @property
    def word(self) -> str:
        """The name as a user writes it: `page-run`."""
        return self.name.lower().replace("_", "-")


class Entry(Choice):
    """What one entry of the `mmu_gather` holds."""

    PAGE = 0, "a page"
    PAGE_RUN = 1, "a page, or a page and a count in two slots (encoded_nr_pages)"
    RANGE = 2, "a range of pages of one folio"

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot."""
        return 16 if self is Entry.RANGE else 8

    @property
    def most_slots(self) -> int:
        """Slots that one entry takes at most. A batch with fewer of them free counts as filled."""
        return 2 if self is Entry.PAGE_RUN else 1

    def slots(self, pages: int) -> int:
        """Slots of an entry of so many pages."""
        return self.most_slots if pages > 1 else 1


class Rmap(Choice):
    """In what units the rmap is removed.

    On arm64 a run of `RUN` also ends where entries with the contiguous bit do: pte_same() of
    folio_pte_batch() sees the bit (see `contiguous.py`).
    """

    PTE = 0, "per PTE, at once"
    ANON_RUN = 1, "per contiguous run of an anonymous large folio, at once; else per PTE"
    RUN = 2, "per contiguous run of one folio, at once"
    RANGE = 3, "per gathered range, at the end of each page-table page"


class Mapcounts(Choice):
    """What one rmap removal does to the counts of a large folio, and when it queues the folio for a split."""

    PAGES = (
        0,
        "page_remove_rmap(): each page has a mapcount, and each page that reaches zero lowers "
        "_nr_pages_mapped; an anonymous folio goes to deferred_split_folio() for each page that is "
        "removed, also for the last one",
    )
    RANGE = (
        1,
        "folio_remove_rmap_range(): each page has a mapcount, and each call lowers _nr_pages_mapped once; an "
        "anonymous folio goes to deferred_split_folio() if pages of it are still mapped. Single pages: as "
        "page_remove_rmap()",
    )
    LARGE = (
        2,
        "folio_remove_rmap_ptes(): as ranges, but _nr_pages_mapped is lowered only if a page reached zero, "
        "each call also lowers _large_mapcount, and a folio goes to deferred_split_folio() only when it "
        "becomes partially mapped and is not marked so yet",
    )
    NO_PAGE = (
        3,
        "folio_remove_rmap_ptes() with CONFIG_NO_PAGE_MAPCOUNT: pages of large folios have no mapcount, each "
        "call lowers _large_mapcount once; a folio is partially mapped where that is above 0 and below its "
        "number of pages. mapcount_atomics then counts small folios, and the entire mapcount of PMD mappings",
    )


class Release(Choice):
    """Who drops the references of a chunk of gather entries."""

    RELEASE_PAGES = 0, "release_pages(), page by page"
    FOLIOS_PUT = 1, "folios_put()"
    FOLIOS_PUT_RANGES = 2, "folios_put_refs() of the range series, range by range"
    FOLIOS_PUT_REFS = 3, "folios_put_refs() of v6.9"

    @property
    def batch(self) -> int:
        """Entries of one call in the kernel that has the function; 0: the whole chunk."""
        return {
            Release.RELEASE_PAGES: 0,
            Release.FOLIOS_PUT: 15,
            Release.FOLIOS_PUT_RANGES: 0,
            Release.FOLIOS_PUT_REFS: PAGEVEC_SIZE,
        }[self]

    @property
    def relocks(self) -> bool:
        """Whether the function, in its kernel, takes the lruvec lock again and again during a call."""
        return self in (Release.RELEASE_PAGES, Release.FOLIOS_PUT_RANGES)

    @property
    def small_last(self) -> bool:
        """Whether a call frees large folios at once, and order-0 pages at its end, the last one first."""
        return self in (Release.RELEASE_PAGES, Release.FOLIOS_PUT_RANGES)


class PageTables(Choice):
    """Where free_pgtables() puts page-table pages."""

    GATHER_ON_X86 = (
        0,
        "through the gather on x86, by RCU on arm64; other architectures are taken to do as arm64, which was "
        "not checked",
    )
    GATHER = 1, "through the gather"
    RCU = 2, "by RCU, in batches of their own"


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """One teardown algorithm.

    The choices: `entry`, `rmap`, `mapcounts`, `release`, `page_tables`. The rest are sizes and habits of its
    kernel: `variants.PARAMETERS` says what each stands for. `since`: the first release that
    does this, None for what none does. `stands_for`: the releases that do, and which of them were traced.
    `shown_by`: what tells a running kernel that does it from older ones:
    functions of /proc/kallsyms and lines of its configuration. `in_summaries`: false for what counts
    nearly as another one, where there is no room for all.
    """

    name: str
    title: str
    source: str
    entry: Entry
    rmap: Rmap
    mapcounts: Mapcounts
    release: Release
    release_batch: int
    relocks: bool
    page_tables: PageTables = PageTables.GATHER_ON_X86
    delayed_rmap: bool = True
    thps_queued: bool = False
    drains_lru: bool = True
    bundle: int = MMU_GATHER_BUNDLE
    batch_pages: int = 1
    batch_slots: int = 0
    max_gather_entries: int = MAX_GATHER_ENTRIES
    max_folios_per_free: int = MAX_NR_FOLIOS_PER_FREE
    lock_batch: int = SWAP_CLUSTER_MAX
    note: str = ""
    since: tuple[int, int] | None = None
    stands_for: str = ""
    shown_by: tuple[str, ...] = ()
    in_summaries: bool = True

    @property
    def defers_rmap(self) -> bool:
        """Whether the rmap of every page waits for the end of the page-table page."""
        return self.rmap is Rmap.RANGE

    @property
    def anon_runs(self) -> bool:
        """Whether a run of an anonymous large folio is taken together."""
        return self.rmap in (Rmap.ANON_RUN, Rmap.RUN)

    @property
    def file_runs(self) -> bool:
        """Whether a run of another large folio is taken together."""
        return self.rmap is Rmap.RUN

    @property
    def alike_runs(self) -> bool:
        """Whether a run ends where the uffd-wp bit or the contiguous bit changes."""
        return self.rmap is Rmap.RUN

    @property
    def run_references(self) -> int:
        """References that are taken and dropped around each run, as operations."""
        return 2 if self.rmap is Rmap.ANON_RUN else 0

    @property
    def counts_pages(self) -> bool:
        """Whether the pages of a large folio have mapcounts."""
        return self.mapcounts is not Mapcounts.NO_PAGE

    @property
    def splits_once(self) -> bool:
        """Whether deferred_split_folio() is left out for folios that are marked as partially mapped."""
        return self.mapcounts in (Mapcounts.LARGE, Mapcounts.NO_PAGE)

    def slots_of_batch(self, page_size: int) -> int:
        """Slots of one batch: 510 pages or 255 ranges in a page of 4 KiB."""
        if self.batch_slots:
            return self.batch_slots
        return (page_size * self.batch_pages - BATCH_HEADER_BYTES) // self.entry.slot_bytes

    def pages_of_batch(self, page_size: int) -> int:
        """Pages allocated for one batch."""
        if not self.batch_slots:
            return self.batch_pages
        pages = -(-(BATCH_HEADER_BYTES + self.batch_slots * self.entry.slot_bytes) // page_size)
        return 1 << (pages - 1).bit_length()

    def max_gather_batch_count(self, page_size: int) -> int:
        """Batches of one gather at most: 19, or 39 of ranges, with 4 KiB pages."""
        return self.max_gather_entries // self.slots_of_batch(page_size)

    def gathers_tables(self, architecture: str) -> bool:
        """Whether page-table pages go through the gather on this architecture."""
        if self.page_tables is PageTables.GATHER_ON_X86:
            return architecture in ("x86_64", "i686", "i386")
        return self.page_tables is PageTables.GATHER


def max_table_batch(page_size: int) -> int:
    """Page tables that are handed to RCU at once: MAX_TABLE_BATCH, 509 with 4 KiB pages."""
    return (page_size - TABLE_BATCH_HEADER_BYTES) // 8


def flushes_for_tables(architecture: str) -> bool:
    """Whether only freed page tables make TLB flushes in exit_mmap(): on arm64.

    Its tlb_flush() leaves the translations of a whole address space in the TLB, as its ASID is not used again
    without a flush.
    """
    return architecture == "aarch64"


BASELINE: Final = "baseline"
"""What the others are compared with unless a user says otherwise."""

_BASELINE: Final = Algorithm(
    BASELINE,
    "the kernel that the series changes",
    "mm-unstable b93868dbf9bc, about v6.6-rc1",
    Entry.PAGE,
    Rmap.PTE,
    Mapcounts.PAGES,
    Release.RELEASE_PAGES,
    release_batch=0,
    relocks=True,
    since=(6, 2),
    stands_for="v6.2 to v6.8, none of which was traced",
    shown_by=("tlb_flush_rmaps",),
)

_V2: Final = dataclasses.replace(
    _BASELINE,
    name="v2",
    title="Optimize mmap_exit for large folios, v2: ranges of pfns",
    source="<20230830095011.1228673-1-ryan.roberts@arm.com>",
    entry=Entry.RANGE,
    rmap=Rmap.RANGE,
    mapcounts=Mapcounts.RANGE,
    release=Release.FOLIOS_PUT_RANGES,
    delayed_rmap=False,
    since=None,
    stands_for="",
    shown_by=(),
    note="A folio may be mapped by a PMD entry and, in the next page-table page, by PTEs from its page 1 on. "
    "v1 and v2 add these PTEs to the range of the PMD entry, and take their rmap for removed. rmap_missed "
    "counts these pages.",
)

_V6_12: Final = Algorithm(
    "v6.12",
    "what v6.9 merged and v6.12 runs: batched zap, page and count, folio batches of 31",
    "Linux v6.12",
    Entry.PAGE_RUN,
    Rmap.RUN,
    Mapcounts.LARGE,
    Release.FOLIOS_PUT_REFS,
    release_batch=PAGEVEC_SIZE,
    relocks=False,
    thps_queued=True,
    since=(6, 9),
    stands_for="v6.9 to v6.13; v6.12 was traced",
    shown_by=("tlb_flush_rmaps", "__tlb_remove_folio_pages"),
)

_MAINLINE: Final = dataclasses.replace(
    _V6_12,
    name="mainline",
    title="Linux v7.3, the newest kernel that was traced; v6.16, v6.17 and v6.18 count alike",
    source="Linux v7.3",
    page_tables=PageTables.RCU,
    drains_lru=False,
    since=(6, 14),
    stands_for="v6.16 to v7.3; v6.18 and v7.3 were traced, v6.16 and v6.17 in a spot check",
    shown_by=(*_V6_12.shown_by, "CONFIG_MM_ID=y"),
    note="v6.14 and v6.15 were not traced. They free page tables by RCU on x86 too (commit 4817f70c25b6). "
    "Whether they drain LRU batches was not checked: if so, 'v6.12,page_tables=rcu' stands for them.",
)

ALGORITHMS: Final = {
    algorithm.name: algorithm
    for algorithm in (
        _BASELINE,
        dataclasses.replace(
            _BASELINE,
            name="v6.1",
            title="baseline without delayed rmap removal",
            source="Linux v6.1 (before commit 5df397dec7c4, v6.2)",
            delayed_rmap=False,
            in_summaries=False,
            since=(0, 0),
            stands_for="v6.1, which was traced; older kernels were not",
            shown_by=(),
            note="v6.1 keeps no _nr_pages_mapped: nr_mapped_atomics counts it as v6.2 does.",
        ),
        dataclasses.replace(
            _BASELINE,
            name="anon-batch",
            title="Optimize large folio teardown, v4: batches the rmap removal of anonymous large folios",
            source="<20230727141837.3386072-1-ryan.roberts@arm.com>",
            rmap=Rmap.ANON_RUN,
            mapcounts=Mapcounts.RANGE,
            since=None,
            stands_for="",
            shown_by=(),
        ),
        dataclasses.replace(
            _V2,
            name="v1",
            title="Optimize mmap_exit for large folios, v1: ranges of struct page pointers",
            source="<20230810103332.3062143-1-ryan.roberts@arm.com>",
            in_summaries=False,
            note="Counts as v2: they differ only without vmemmap, and for zone-device folios, where v1 leaks "
            "references; procfs shows neither.",
        ),
        _V2,
        dataclasses.replace(
            _BASELINE,
            name="folio-batch",
            title="Rearrange batched folio freeing: the competing series",
            source="<20230825135918.4164671-1-willy@infradead.org>",
            release=Release.FOLIOS_PUT,
            release_batch=15,
            relocks=False,
            since=None,
            stands_for="",
            shown_by=(),
        ),
        _V6_12,
        _MAINLINE,
        dataclasses.replace(
            _MAINLINE,
            name="mainline-nomapcount",
            title="mainline built with CONFIG_NO_PAGE_MAPCOUNT: pages of large folios have no mapcount",
            source="Linux v7.3 (CONFIG_NO_PAGE_MAPCOUNT came with v6.15)",
            mapcounts=Mapcounts.NO_PAGE,
            in_summaries=False,
            stands_for="v6.16 to v7.3 with this option; v7.3 was traced",
            shown_by=(*_MAINLINE.shown_by, "CONFIG_NO_PAGE_MAPCOUNT=y"),
            note="Off in Debian's kernels. Counts of a trace that was taken with the option are averages.",
        ),
    )
}


def of_kernel(shown: Collection[str]) -> Algorithm:
    """What a running kernel does, by what it shows: see `Algorithm.shown_by`.

    Not by its release: distributions carry changes to older releases.
    """
    real = [algorithm for algorithm in ALGORITHMS.values() if algorithm.since is not None]
    fitting = [algorithm for algorithm in real if set(algorithm.shown_by) <= set(shown)]
    return max(fitting, key=lambda algorithm: len(algorithm.shown_by))


def of_release(release: str) -> Algorithm | None:
    """What the kernel of this `uname -r` probably does; None if the text has no numbers.

    Distributions carry changes to older releases: this is for a trace, whose kernel cannot be asked.
    """
    found = release_numbers(release)
    if found is None:
        return None
    real = [
        (algorithm.since, algorithm)
        for algorithm in ALGORITHMS.values()
        if algorithm.since is not None and algorithm.counts_pages
    ]
    return max((pair for pair in real if pair[0] <= found), key=lambda pair: pair[0])[1]


def release_numbers(release: str) -> tuple[int, int] | None:
    """The first two numbers of a `uname -r`, None if it has none."""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    return None if numbers is None else (int(numbers[1]), int(numbers[2]))


UNTRACED: Final = ((6, 14), (6, 15))
"""Releases that nobody traced, though older and newer ones were: see the note of `mainline`."""

NEWEST_TRACED: Final = (7, 3)
"""The newest release whose teardown was traced and agreed with `mainline`."""

NOT_MODELLED: Final = (
    "Preemption: need_resched() breaks zap_pte_range() off; where dirty PTEs wait, that flushes what was "
    "gathered. In the builds that 'replay validate' compared, it moved no free.",
    "References that procfs does not show (pins, pipes, buffers): folios with one are freed later.",
    "LRU and mlock batches hold a reference to each of their folios until they are emptied. Procfs shows "
    "that a folio is not on the LRU, not in whose batch it waits. If the algorithm drains, the replay treats "
    "each such folio as drained, and frees it; a kernel drains the batches of one CPU only. If the algorithm "
    "does not drain, the replay keeps each such folio. Nothing shows folios in the batches of MADV_COLD, "
    "MADV_FREE and mark_page_accessed().",
    "The PTE dirty bit: inferred as not anonymous, VMA shared and writable, folio dirty; it moves flushes "
    "and with them release calls, never rmap counts.",
    "The contiguous bit of arm64's PTEs: since v6.9 a run of PTEs ends where a contiguous block ends (16 "
    "entries with 4 KiB pages). The replay takes the bit as set in every aligned block that can have it.",
    "Page tables of hugetlb that processes share (huge_pmd_unshare()): their pages count in each process.",
    "page_poisoning and init_on_free, which make kernels since v6.9 release chunks of fewer pages.",
    "NUMA hinting: entries that it has made PROT_NONE end runs since v6.9; pagemap does not show them.",
    "_nr_pages_mapped where another address space maps a folio by a PMD that this one maps by PTEs: "
    "'nr_mapped_atomics' is too low there.",
    "split_queue_lock where a kernel since v6.12 finds the folio queued already: 'locks' misses it.",
    "Swap entries that another process still uses: the kernel keeps such a folio in the swap cache.",
    "Swap entries whose folio is still in the swap cache: free_swap_and_cache() frees it with the entry.",
    "Several lruvecs: lruvec_locks follows memory cgroups where the trace has them (column memcg); one NUMA "
    "node is assumed.",
    "Zone-device folios: procfs shows neither their size nor their counts; a trace with one that a PMD maps "
    "is refused.",
)
