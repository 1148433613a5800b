# SPDX-License-Identifier: Apache-2.0
"""The literal replay: one Python object per PTE, page and folio, each step as the kernel makes it.

Slow, and easy to compare with the description of the algorithms. The machine must equal it, and it is
compared with the traced calls of real kernels. It records the calls themselves beside the counters. Kernel
functions named here are those of the kernels in `algorithms.py`. The functions stand in the same order as in
the machine (`machine.py`, `gather.py`, `rmap.py`, `release.py`), under the same names.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Iterator, Sequence

from replay.teardown.algorithms import (
    PAGEVEC_SIZE,
    Algorithm,
    Entry,
    Mapcounts,
    flushes_for_tables,
    max_table_batch,
)
from replay.teardown.counters import COUNTED, complete
from replay.teardown.extents import huge_zero
from replay.teardown.spaces import AddressSpaceInput
from replay.trace.schema import HUGETLB, MARKER, PAGE, PMD, SWAP, ptes_per_table

MAPPED = (PAGE, PMD, HUGETLB)
"""Kinds of extents that map folios."""


@dataclasses.dataclass(eq=False)
class Folio:
    """A folio's state while it is torn down; `mapped` counts its pages with a mapcount above zero.

    `memcg`: the memory cgroup whose lruvec it is on. `off_lru`: neither on an LRU list nor of
    hugetlb. `mlocked`: marked as mlocked.
    """

    pfn: int
    order: int
    anon: bool = False
    hugetlb: bool = False
    swapcache: bool = False
    table: bool = False
    off_lru: bool = False
    mlocked: bool = False
    memcg: int = 0
    refs: int = 1
    mapped: int = 0
    mapcount: int = 0
    partially_mapped: bool = False
    queued: bool = False

    @property
    def pages(self) -> int:
        """Base pages."""
        return 1 << self.order

    @property
    def large(self) -> bool:
        """Whether it has more than one page."""
        return self.order > 0

    @property
    def lru(self) -> bool:
        """Whether it is on an LRU list when it is freed."""
        return not (self.hugetlb or self.table)


@dataclasses.dataclass(eq=False)
class Pte:
    """One present, swap or marker entry of a page-table page.

    `zero`: of the huge zero page, which a PMD maps. `locked`: its VMA is VM_LOCKED.
    """

    vpn: int
    kind: int
    pfn: int
    uffd_wp: bool
    contiguous: bool
    dirty: bool
    locked: bool
    folio: Folio
    zero: bool


@dataclasses.dataclass(eq=False)
class GatherEntry:
    """One entry of the gather: pages from `pfn` on, as many references, slots it takes.

    `rmap_pending`: its rmap is to be removed at the end of the page-table page. `locked`: of a VM_LOCKED VMA.
    """

    folio: Folio
    pfn: int
    pages: int
    slots: int
    rmap_pending: bool = False
    locked: bool = False


@dataclasses.dataclass
class Outcome:
    """What a replay found: the counters, the calls behind them, and the bugs.

    `rmap_sizes`: pages of an rmap call -> calls. `release_sizes`: entries of each release call,
    `release_freed`: how many of `freed` it freed, calls that empty an mlock batch included.
    `flush_groups`: slots of the chunks of each flush. `freed`: (pfn, order) in the kernel's order.
    `freed_while_mapped`: pages of freed folios whose rmap was never removed. `references_left`:
    own references never dropped. `references_dropped_twice`: references dropped below zero.
    """

    counters: dict[str, int]
    rmap_sizes: Counter[int]
    release_sizes: list[int]
    release_freed: list[int]
    flush_groups: list[list[int]]
    freed: list[tuple[int, int]]
    freed_while_mapped: int
    references_left: int
    references_dropped_twice: int


def replay(space: AddressSpaceInput, algorithm: Algorithm) -> Outcome:
    """Tear one address space down by one algorithm; all others stay as they were captured.

    space: the extents of the address space; algorithm: what the kernel does.
    """
    return _Teardown(space, algorithm, _Memory([space], algorithm)).exit_mmap()


def replay_together(spaces: Sequence[AddressSpaceInput], algorithm: Algorithm) -> list[Outcome]:
    """Tear address spaces down one after the other, each from the state that the one before has left.

    spaces: in the order in which they exit; algorithm: what the kernel does.
    """
    memory = _Memory(spaces, algorithm)
    return [_Teardown(space, algorithm, memory).exit_mmap() for space in spaces]


class _Memory:
    """What outlives one teardown: folios, mapcounts of pages, the mlock batch of the CPU that tears down."""

    def __init__(self, spaces: Sequence[AddressSpaceInput], algorithm: Algorithm) -> None:
        """Build the folios that the address spaces map.

        spaces: those that are torn down; algorithm: decides what holds references and what is queued already.
        """
        self.algorithm = algorithm
        self.folios: dict[int, Folio] = {}
        self.page_mapcount: dict[int, int] = {}
        self.page_pmds: Counter[int] = Counter()
        for space in spaces:
            self._build_folios(space)
        self.mlock_batch: list[Folio] = []
        if not algorithm.drains_lru:
            for folio in self.folios.values():
                folio.refs += folio.off_lru
                if folio.off_lru and folio.mlocked:
                    self.mlock_batch.append(folio)

    def _build_folios(self, space: AddressSpaceInput) -> None:
        """Make each folio that an address space maps, and note the mapcounts of its pages.

        space: the address space.
        """
        e = space.extents
        for i in range(len(e.vpn)):
            if e.kind[i] not in MAPPED:
                continue
            for pfn in range(int(e.pfn[i]), int(e.pfn[i] + e.pages[i])):
                self.page_mapcount[pfn] = int(e.mapcount[i])
                self.page_pmds[pfn] += int(e.kind[i]) == PMD
                head = int(e.folio[i]) if e.order[i] else pfn
                if head not in self.folios:
                    self.folios[head] = self._folio(space, i, head)
            if begins_huge_mapping(space, i):
                # the sum of mapcounts has one per page for a mapping that holds one reference
                folio = self.folios[int(e.folio[i])]
                folio.refs -= folio.pages - 1

    def _folio(self, space: AddressSpaceInput, i: int, head: int) -> Folio:
        """A folio as it was captured.

        space: an address space that maps it; i: one of the extents that do; head: pfn of its first page.
        """
        e = space.extents
        folio = Folio(
            pfn=head,
            order=int(e.order[i]),
            anon=bool(e.anon[i]),
            hugetlb=bool(e.hugetlb[i]),
            swapcache=bool(e.swapcache[i]),
            off_lru=bool(e.off_lru[i]),
            mlocked=bool(e.mlocked[i]),
            memcg=int(e.memcg[i]),
            refs=int(e.folio_mapcount[i]),
            mapped=int(e.folio_mapped[i]),
            mapcount=int(e.folio_mapcount[i]),
        )
        if folio.swapcache or not folio.anon:
            folio.refs += folio.pages
        mapped = folio.mapped if self.algorithm.counts_pages else folio.mapcount
        if folio.anon and not folio.hugetlb and folio.order >= 2 and mapped < folio.pages:
            # deferred_split_folio() refuses what is in the swap cache
            folio.partially_mapped = folio.queued = not folio.swapcache
        if self.algorithm.thps_queued and folio.anon and not folio.hugetlb:
            folio.queued |= folio.pages == ptes_per_table(space.page_size)
        return folio


def begins_huge_mapping(space: AddressSpaceInput, i: int) -> bool:
    """Whether an extent is the first of a huge mapping; one whose pages differ in a column is several.

    space: the address space; i: the index of the extent.
    """
    e = space.extents
    if e.kind[i] == PMD:
        return bool(e.vpn[i] % ptes_per_table(space.page_size) == 0)
    return bool(e.kind[i] == HUGETLB and e.pfn[i] == e.folio[i])


class _Teardown:
    """The state of one exit_mmap(): the gather, the batch of page tables, what is counted."""

    def __init__(self, space: AddressSpaceInput, algorithm: Algorithm, memory: _Memory) -> None:
        """Begin with an empty gather.

        space: what is torn down; algorithm: how; memory: the folios, which other teardowns may share.
        """
        self.space = space
        self.extents = space.extents
        self.algorithm = algorithm
        self.folios = memory.folios
        self.page_mapcount = memory.page_mapcount
        self.page_pmds = memory.page_pmds
        self.mlock_batch = memory.mlock_batch
        self.ptes_per_table = ptes_per_table(space.page_size)
        self.count: Counter[str] = Counter()
        self.rmap_sizes: Counter[int] = Counter()
        self.release_sizes: list[int] = []
        self.release_freed: list[int] = []
        self.flush_groups: list[list[int]] = []
        self.freed: list[tuple[int, int]] = []
        # struct mmu_gather: batch 0 is the bundle
        self.batch_slots = algorithm.slots_of_batch(space.page_size)
        self.max_batches = algorithm.max_gather_batch_count(space.page_size)
        self.batches: list[list[GatherEntry]] = [[]]
        self.active = 0
        self.used_slots = 0
        self.delayed_rmap = False
        self.open_range: GatherEntry | None = None
        self.in_pass: list[GatherEntry] = []
        # what the next TLB flush would flush
        self.cleared = False
        self.freed_tables = False

    # ------------------------------------------------------------------ the walk

    def exit_mmap(self) -> Outcome:
        """Unmap every VMA, free the page tables, flush."""
        for mapping in self._mappings():
            if mapping[0].kind in (PMD, HUGETLB):
                self._zap_huge(mapping)
            elif mapping[0].zero:
                self.count["special_ptes"] += 1
                self.cleared = True
            else:
                self._zap_pte_range(mapping)
        self._free_pgtables()
        self._force_flush()
        self.count["gather_pages_peak"] = (len(self.batches) - 1) * self.algorithm.pages_of_batch(
            self.space.page_size
        )
        held = self.count["ptes"] + self.count["pmd_mappings"] + self.count["hugetlb_pages"]
        held += self.count["gathered_tables"]
        return Outcome(
            counters=complete({name: self.count[name] for name in COUNTED}),
            rmap_sizes=self.rmap_sizes,
            release_sizes=self.release_sizes,
            release_freed=self.release_freed,
            flush_groups=self.flush_groups,
            freed=self.freed,
            freed_while_mapped=self.count["freed_while_mapped"],
            references_left=held - self.count["references_dropped"],
            references_dropped_twice=self.count["references_dropped_twice"],
        )

    def _mappings(self) -> Iterator[list[Pte]]:
        """What one entry of a PMD page leads to: the PTEs of one page-table page, or one huge mapping."""
        e = self.extents
        zero = huge_zero(e, self.ptes_per_table)
        group: list[Pte] = []
        key: tuple[int, ...] = ()
        for i in range(len(e.vpn)):
            kind = int(e.kind[i])
            if kind in (PMD, HUGETLB):
                new = (i,) if begins_huge_mapping(self.space, i) else key
            elif zero[i]:
                new = (i,)
            else:
                new = (int(e.vma[i]), int(e.table_end[i]))
            if new != key and group:
                yield group
                group = []
            key = new
            for k in range(int(e.pages[i])):
                pfn = int(e.pfn[i]) + k
                head = int(e.folio[i]) if e.order[i] else pfn
                folio = self.folios[head] if kind in MAPPED else Folio(head, int(e.order[i]))
                bits = bool(e.uffd_wp[i]), bool(e.contiguous[i]), bool(e.dirty[i]), bool(e.locked[i])
                group.append(Pte(int(e.vpn[i]) + k, kind, pfn, *bits, folio, bool(zero[i])))
        if group:
            yield group

    def _zap_huge(self, ptes: list[Pte]) -> None:
        """zap_huge_pmd() and __unmap_hugepage_range(): one entry, one rmap removal, one reference.

        ptes: every page of the huge mapping.
        """
        first = ptes[0]
        folio = first.folio
        by_pmd = first.kind == PMD
        self.count["pmd_mappings" if by_pmd else "hugetlb_pages"] += 1
        self.cleared = True
        pfns = [pte.pfn for pte in ptes]
        if by_pmd:
            self.page_pmds.subtract(pfns)
            self.count["mapcount_atomics"] += not self.algorithm.counts_pages
        unmapped = self._drop_mapcounts(folio, pfns)
        if self.algorithm.counts_pages:
            partially = 0 < unmapped < len(ptes)
        else:
            partially = 0 < folio.mapcount < folio.pages
        if folio.anon and not folio.hugetlb and partially:
            self._deferred_split(folio)
        if by_pmd and first.locked:
            self._munlock_folio(folio)
        if self._tlb_remove(GatherEntry(folio, first.pfn, 1, 1)):
            self._force_flush()

    def _zap_pte_range(self, ptes: list[Pte]) -> None:
        """zap_pte_range(): one page-table page, restarted behind the entry that filled the gather.

        ptes: the entries of the page-table page that one VMA has.
        """
        table_end = self._table_end(ptes[0])
        position = 0
        restart = True
        while restart:
            self.in_pass = []
            position, force_flush, full = self._zap_pass(ptes, position)
            if force_flush or full:
                self._tlb_flush()
            self._flush_rmaps()
            if force_flush or full:
                self._flush_gather()
            restart = full and ptes[position - 1].vpn + 1 < table_end

    def _table_end(self, pte: Pte) -> int:
        """The page number where the page-table page of an entry ends, or its VMA if that ends first.

        pte: any entry of the page-table page.
        """
        # table_end of an extent is cut at its VMA, and all extents of a page-table page have the same
        e = self.extents
        i = int(e.vpn.searchsorted(pte.vpn, side="right")) - 1
        return int(e.table_end[i])

    def _zap_pass(self, ptes: list[Pte], position: int) -> tuple[int, bool, bool]:
        """Take PTEs down until the gather is full -> (position behind the last, force flush, full).

        ptes: the entries of the page-table page; position: the index of the first one to take.
        """
        force_flush = False
        while position < len(ptes):
            pte = ptes[position]
            if pte.kind != PAGE:
                self._zap_other(pte)
                position += 1
                continue
            run = self._run(ptes, position)
            force_flush |= any(page.dirty for page in run)
            done, full = self._zap_present(run)
            position += done
            self.count["ptes"] += done
            self.cleared = True
            if full:
                return position, force_flush, True
        return position, force_flush, False

    def _zap_other(self, pte: Pte) -> None:
        """Take down an entry without a page that has an rmap: swap, a marker, the zero page.

        pte: the entry.
        """
        if pte.kind == SWAP:
            self.count["swap_entries"] += 1
        elif pte.kind == MARKER:
            self.count["marker_ptes"] += 1
        else:
            self.count["special_ptes"] += 1
            self.cleared = True

    def _run(self, ptes: list[Pte], position: int) -> list[Pte]:
        """The PTEs that are taken together: a run of one large folio, or a single PTE.

        ptes: the entries of the page-table page; position: the index of the first one of the run.
        """
        run = [ptes[position]]
        if self._in_runs(run[0].folio):
            for pte in ptes[position + 1 :]:
                if not self._continues_run(run[-1], pte):
                    break
                run.append(pte)
        return run

    def _continues_run(self, last: Pte, pte: Pte) -> bool:
        """Whether a PTE goes on with a run.

        last: the last PTE of the run so far; pte: the entry after it.
        """
        return (
            pte.kind == PAGE
            and pte.folio is last.folio
            and (pte.vpn, pte.pfn) == (last.vpn + 1, last.pfn + 1)
            and (
                not self.algorithm.alike_runs
                or (pte.uffd_wp, pte.contiguous) == (last.uffd_wp, last.contiguous)
            )
        )

    def _zap_present(self, run: list[Pte]) -> tuple[int, bool]:
        """Put a run into the gather and remove its rmap -> (PTEs done, whether the gather is full).

        run: PTEs of adjacent pages of one folio. Where its pages are entries of their own and the gather
        fills up among them, the run ends there.
        """
        folio = run[0].folio
        waits = self.algorithm.defers_rmap
        if self.algorithm.delayed_rmap and any(pte.dirty for pte in run):
            self.delayed_rmap = True
            waits = True
        if self._in_runs(folio):
            self.count["refcount_atomics"] += self.algorithm.run_references
        done, full = self._gather_run(run, waits)
        if not waits:
            self._remove_rmap(folio, [pte.pfn for pte in run[:done]], run[0].locked)
        return done, full

    # ------------------------------------------------------------------ the gather

    def _gather_run(self, run: list[Pte], waits: bool) -> tuple[int, bool]:
        """Add the pages of a run as one entry or several -> (pages added, whether the gather is full).

        run: PTEs of adjacent pages of one folio; waits: whether their rmap is removed later.
        """
        folio = run[0].folio
        if self.algorithm.entry is Entry.PAGE_RUN:
            slots = self.algorithm.entry.slots(len(run))
            entry = GatherEntry(folio, run[0].pfn, len(run), slots, waits, run[0].locked)
            return len(run), self._tlb_remove(entry)
        for number, pte in enumerate(run, start=1):
            entry = GatherEntry(folio, pte.pfn, 1, 1, waits, pte.locked)
            ranges = self.algorithm.entry is Entry.RANGE
            if self._gather_range(entry) if ranges else self._tlb_remove(entry):
                return number, True
        return len(run), False

    def _gather_range(self, page: GatherEntry) -> bool:
        """Extend the open range by a page, or begin a new range -> whether the gather is full.

        page: an entry of one page.
        """
        entry = self.open_range
        if entry is not None and entry.folio is page.folio and page.pfn == entry.pfn + entry.pages:
            entry.pages += 1
            if page.pfn + 1 == page.folio.pfn + page.folio.pages:
                self.open_range = None
            return False
        self.in_pass.append(page)
        return self._tlb_remove(page)

    def _tlb_remove(self, entry: GatherEntry) -> bool:
        """__tlb_remove_page_size(): add an entry -> whether the gather is full.

        entry: what is added.
        """
        self.count["gather_slots"] += entry.slots
        self.used_slots += entry.slots
        self.batches[self.active].append(entry)
        if self.algorithm.entry is Entry.RANGE:
            closed = entry.pfn + entry.pages == entry.folio.pfn + entry.folio.pages
            self.open_range = None if closed else entry
        return self._batch_filled() and not self._next_batch()

    def _batch_filled(self) -> bool:
        """Whether an entry of the largest size no longer fits into the batch in use."""
        slots = self.algorithm.bundle if self.active == 0 else self.batch_slots
        return slots - self.used_slots < self.algorithm.entry.most_slots

    def _next_batch(self) -> bool:
        """tlb_next_batch(): whether there is a batch to move to."""
        if self.delayed_rmap and self.active != 0:
            return False
        if self.active == self.max_batches:
            return False
        self.active += 1
        self.used_slots = 0
        if self.active == len(self.batches):
            self.batches.append([])
        self.open_range = None
        return True

    def _free_pgtables(self) -> None:
        """free_pgtables(): every page-table page is an entry of the gather, or goes to RCU."""
        by_rcu = not self.algorithm.gathers_tables(self.space.architecture)
        for number in range(1, self.space.page_tables + 1):
            self.count["page_tables"] += 1
            self.freed_tables = True
            if by_rcu:
                self._tlb_remove_table(number)
            else:
                self.count["gathered_tables"] += 1
                table = Folio(pfn=-1, order=0, table=True)
                if self._tlb_remove(GatherEntry(table, -1, 1, 1)):
                    self._force_flush()

    def _tlb_remove_table(self, number: int) -> None:
        """tlb_remove_table(): into a batch of its own; a full one is handed to RCU after a TLB flush.

        number: of the page-table page, from 1 on.
        """
        place = (number - 1) % max_table_batch(self.space.page_size)
        self.count["table_batches"] += place == 0
        if place + 1 == max_table_batch(self.space.page_size):
            self._tlb_flush()

    def _force_flush(self) -> None:
        """tlb_flush_mmu()."""
        self._tlb_flush()
        self._flush_gather()

    def _tlb_flush(self) -> None:
        """tlb_flush_mmu_tlbonly(): nothing, if nothing was cleared since the last one."""
        by_rcu = not self.algorithm.gathers_tables(self.space.architecture)
        if by_rcu and flushes_for_tables(self.space.architecture):
            self.count["tlb_flushes"] += self.freed_tables
        else:
            self.count["tlb_flushes"] += self.cleared or self.freed_tables
        self.cleared = False
        self.freed_tables = False

    def _flush_gather(self) -> None:
        """tlb_flush_mmu_free(): hand every batch over, in chunks, and begin anew with the bundle."""
        group = []
        for batch in self.batches:
            entries = deque(batch)
            while entries:
                chunk = []
                slots = 0
                while entries and slots < self.algorithm.max_folios_per_free:
                    chunk.append(entries.popleft())
                    slots += chunk[-1].slots
                group.append(slots)
                self._free_chunk(chunk)
            batch.clear()
        if group:
            self.count["gather_flushes"] += 1
            self.flush_groups.append(group)
        self.active = 0
        self.used_slots = 0
        self.open_range = None

    # ------------------------------------------------------------------ rmap

    def _flush_rmaps(self) -> None:
        """tlb_flush_rmaps(): the rmaps that wait for the end of the page-table page."""
        if self.algorithm.defers_rmap:
            # pages that joined an entry made before this pass count as done: a defect of the series
            self.count["rmap_flushes"] += 1
            pending = self.in_pass
        else:
            pending = [entry for batch in self.batches for entry in batch if entry.rmap_pending]
        for entry in pending:
            entry.rmap_pending = False
            self._remove_rmap(entry.folio, list(range(entry.pfn, entry.pfn + entry.pages)), entry.locked)
        self.delayed_rmap = False
        self.open_range = None

    def _remove_rmap(self, folio: Folio, pfns: list[int], locked: bool) -> None:
        """One call of page_remove_rmap(), folio_remove_rmap_range() or folio_remove_rmap_ptes().

        folio: whose pages they are; pfns: the pages of the call; locked: whether their VMA is VM_LOCKED.
        """
        self.count["rmap_calls"] += 1
        self.count["rmap_pages"] += len(pfns)
        if self.algorithm.counts_pages or not folio.large:
            self.count["mapcount_atomics"] += len(pfns)
        self.rmap_sizes[len(pfns)] += 1
        unmapped = self._drop_mapcounts(folio, pfns)
        if folio.large:
            # the kernel counts mappings by PTEs and by PMDs apart; here the sum is known, and the own PMDs
            cleared = sum(self.page_mapcount[pfn] == self.page_pmds[pfn] for pfn in pfns)
            if self._count_large(folio, unmapped, cleared) and folio.anon:
                self._deferred_split(folio)
        if locked:
            self._munlock_folio(folio)

    def _count_large(self, folio: Folio, unmapped: int, cleared: int) -> bool:
        """Count what an rmap call does to a large folio -> whether it is one for deferred_split_folio().

        folio: the large folio, its mapcounts lowered already; unmapped: pages of the call that nothing maps
        any more; cleared: pages of the call that no PTE maps any more.
        """
        mapcounts = self.algorithm.mapcounts
        if mapcounts is Mapcounts.RANGE and not (self._in_runs(folio) or self.algorithm.defers_rmap):
            mapcounts = Mapcounts.PAGES
        if mapcounts is Mapcounts.PAGES:
            self.count["nr_mapped_atomics"] += cleared
            return unmapped > 0
        if mapcounts is Mapcounts.RANGE:
            self.count["nr_mapped_atomics"] += 1
            return unmapped > 0 and folio.mapped > 0
        self.count["large_mapcount_atomics"] += 1
        if mapcounts is Mapcounts.NO_PAGE:
            return 0 < folio.mapcount < folio.pages
        self.count["nr_mapped_atomics"] += cleared > 0
        return unmapped > 0 and folio.mapped > 0

    def _drop_mapcounts(self, folio: Folio, pfns: list[int]) -> int:
        """Lower the mapcounts of pages -> how many reached zero.

        folio: whose pages they are; pfns: the pages, each once.
        """
        unmapped = 0
        for pfn in pfns:
            self.page_mapcount[pfn] -= 1
            if self.page_mapcount[pfn] == 0:
                unmapped += 1
        folio.mapped -= unmapped
        folio.mapcount -= len(pfns)
        return unmapped

    def _deferred_split(self, folio: Folio) -> None:
        """deferred_split_folio(), and what its callers check before it.

        folio: an anonymous large folio of which pages were unmapped.
        """
        if self.algorithm.splits_once and folio.partially_mapped:
            return
        self.count["deferred_split_calls"] += 1
        if folio.order < 2 or folio.swapcache:
            return
        folio.partially_mapped = True
        if not folio.queued:
            folio.queued = True
            self.count["deferred_split_queued"] += 1

    def _munlock_folio(self, folio: Folio) -> None:
        """munlock_folio(): into the mlock batch, which holds a reference until it is emptied.

        folio: unmapped from a VM_LOCKED VMA. Kernels that drain the batch before each release free no folio
        later by it.
        """
        if self.algorithm.drains_lru:
            return
        folio.refs += 1
        self.mlock_batch.append(folio)
        if len(self.mlock_batch) >= PAGEVEC_SIZE or folio.large:
            self._mlock_folio_batch()

    def _mlock_folio_batch(self) -> None:
        """mlock_folio_batch(): empty the batch and drop its references, which may be the last ones."""
        freed = []
        for folio in self.mlock_batch:
            folio.refs -= 1
            if folio.refs == 0:
                self._free_folio(folio)
                freed.append(folio)
        self.mlock_batch.clear()
        if freed:
            self._log_freed(freed)

    # ------------------------------------------------------------------ release

    def _free_chunk(self, chunk: list[GatherEntry]) -> None:
        """free_pages_and_swap_cache(): the swap cache first, then the references.

        chunk: entries of one batch, at most max_folios_per_free slots and one entry.
        """
        self.count["free_calls"] += 1
        for entry in chunk:
            self.count["swapcache_checks"] += 1
            self._free_swap_cache(entry.folio)
        size = self.algorithm.release_batch or len(chunk)
        for start in range(0, len(chunk), size):
            self._release(chunk[start : start + size])

    def _free_swap_cache(self, folio: Folio) -> None:
        """free_swap_cache(): a folio that is no longer mapped leaves the swap cache.

        folio: of an entry that is about to be released.
        """
        if folio.swapcache and folio.mapcount == 0:
            self.count["swapcache_frees"] += 1
            folio.swapcache = False
            folio.refs -= folio.pages

    def _release(self, entries: list[GatherEntry]) -> None:
        """One release call: drop references, free what has none left.

        entries: those of the call, in the order of the gather.
        """
        self.count["release_calls"] += 1
        self.release_sizes.append(len(entries))
        freed = []
        locked = False
        lock_age = 0
        held = 0
        for entry in entries:
            if self.algorithm.relocks and locked:
                lock_age += 1
                locked = lock_age < self.algorithm.lock_batch
            if not self._drop_references(entry):
                continue
            folio = entry.folio
            freed.append(folio)
            if folio.hugetlb:
                # free_huge_folio() must not be called under the lock
                locked = False
            elif self.algorithm.relocks and folio.large:
                locked = False
                self.count["lruvec_locks"] += folio.lru
            elif folio.lru and not (locked and held == folio.memcg):
                # folio_lruvec_relock_irqsave(): the lock of another lruvec is dropped first
                self.count["lruvec_locks"] += 1
                locked = True
                held = folio.memcg
                lock_age = 0
        self._log_freed(freed)

    def _drop_references(self, entry: GatherEntry) -> bool:
        """Drop an entry's references -> whether its folio is freed.

        entry: holds one reference for each of its pages.
        """
        folio = entry.folio
        self.count["release_entries"] += 1
        self.count["refcount_atomics"] += 1
        self.count["references_dropped"] += entry.pages
        folio.refs -= entry.pages
        if folio.refs < 0:
            self.count["references_dropped_twice"] += min(entry.pages, -folio.refs)
        if folio.refs != 0:
            return False
        self._free_folio(folio)
        return True

    def _free_folio(self, folio: Folio) -> None:
        """Free a folio whose last reference is gone.

        folio: any; page tables and hugetlb pages are not counted as freed.
        """
        if folio.queued:
            folio.queued = False
            self.count["deferred_split_dequeued"] += 1
        if folio.lru:
            self.count["folios_freed"] += 1
            self.count["pages_freed"] += folio.pages
            self.count["freed_while_mapped"] += folio.mapcount

    def _log_freed(self, freed: list[Folio]) -> None:
        """Note freed folios in the kernel's order: some functions free order-0 pages last, in reverse.

        freed: the folios of one release call, in the order of its entries.
        """
        shown = [folio for folio in freed if folio.lru]
        if self.algorithm.release.small_last:
            large = [folio for folio in shown if folio.large]
            shown = large + [folio for folio in reversed(shown) if not folio.large]
        self.release_freed.append(len(shown))
        self.freed += [(folio.pfn, folio.order) for folio in shown]

    # ------------------------------------------------------------------ what the algorithm takes together

    def _in_runs(self, folio: Folio) -> bool:
        """Whether PTEs that map a folio one after the other are taken together.

        folio: the folio that they map.
        """
        return folio.large and (self.algorithm.anon_runs if folio.anon else self.algorithm.file_runs)
