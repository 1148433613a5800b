"""The literal replay: one Python object per PTE, page and folio, each step as the kernel makes it.

Slow, and easy to hold against the description of the algorithms: this is what `machine.py` must equal,
and what is held against the traced calls of real kernels. It records the calls themselves beside the
counters. Kernel functions named here are those of the kernels in `algorithms.py`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Iterator

from replay.teardown.algorithms import (
    BUNDLE_SLOTS,
    MAX_FOLIOS_PER_FREE,
    RELEASE_BATCH,
    Algorithm,
    Entry,
    Release,
    Rmap,
    batch_slots,
    max_batches,
    table_batch,
)
from replay.teardown.counters import COUNTED, complete
from replay.teardown.extents import Extents, huge_zero
from replay.trace.schema import HUGETLB, MARKER, PAGE, PMD, SPECIAL, SWAP, ptes_per_table

LOCK_BATCH = 32
"""Entries after which release_pages() drops the lruvec lock: SWAP_CLUSTER_MAX."""


@dataclasses.dataclass(eq=False)
class Folio:
    """A folio's state while it is torn down; `mapped` counts its pages with a mapcount above zero."""

    pfn: int
    order: int
    anon: bool = False
    hugetlb: bool = False
    swapcache: bool = False
    table: bool = False
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
        """Whether it is on an LRU list once lru_add_drain() has run."""
        return not (self.hugetlb or self.table)


@dataclasses.dataclass(eq=False)
class Pte:
    """One present or swap entry of a page-table page; `zero`: of the huge zero page, which a PMD maps."""

    vpn: int
    kind: int
    pfn: int
    uffd_wp: bool
    contiguous: bool
    dirty: bool
    folio: Folio
    zero: bool


@dataclasses.dataclass(eq=False)
class GatherEntry:
    """One entry of the gather: pages from `pfn` on, as many references, slots it takes.

    `rmap_pending`: its rmap is to be removed at the end of the page-table page.
    """

    folio: Folio
    pfn: int
    pages: int
    slots: int
    rmap_pending: bool = False


@dataclasses.dataclass
class Outcome:
    """What a replay found: the counters, the calls behind them, and the bugs.

    `rmap_sizes`: pages of an rmap call -> calls. `release_sizes`: entries of each release call,
    `release_freed`: how many of `freed` it freed.
    `flush_groups`: slots of the pieces of each flush. `freed`: (pfn, order) in the kernel's order.
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


def replay(
    extents: Extents, page_tables: int, page_size: int, algorithm: Algorithm, rcu_tables: int | None = None
) -> Outcome:
    """Tear one address space down by one algorithm.

    extents: its extents in address order; page_tables: pages for free_pgtables() to put through the gather
    (0 where they take the RCU path); rcu_tables: pages freed by RCU, where only they make TLB flushes.
    """
    return _Teardown(extents, page_tables, page_size, algorithm, rcu_tables).exit_mmap()


class _Teardown:
    """The state of one exit_mmap(): folios, page mapcounts, the gather."""

    def __init__(
        self,
        extents: Extents,
        page_tables: int,
        page_size: int,
        algorithm: Algorithm,
        rcu_tables: int | None,
    ) -> None:
        self.extents = extents
        self.page_tables = page_tables
        self.rcu_tables = rcu_tables
        self.table_batch = table_batch(page_size)
        self.algorithm = algorithm
        self.ptes_per_table = ptes_per_table(page_size)
        self.count: Counter[str] = Counter()
        self.rmap_sizes: Counter[int] = Counter()
        self.release_sizes: list[int] = []
        self.release_freed: list[int] = []
        self.flush_groups: list[list[int]] = []
        self.freed: list[tuple[int, int]] = []
        self.folios: dict[int, Folio] = {}
        self.page_mapcount: dict[int, int] = {}
        self.page_pmds: Counter[int] = Counter()
        self._build_folios()
        # struct mmu_gather: batch 0 is the bundle
        self.batch_slots = batch_slots(algorithm.entry, page_size)
        self.max_batches = max_batches(algorithm.entry, page_size)
        self.batches: list[list[GatherEntry]] = [[]]
        self.active = 0
        self.used_slots = 0
        self.delayed_rmap = False
        self.freed_tables = False
        self.open_range: GatherEntry | None = None
        self.in_pass: list[GatherEntry] = []

    def _build_folios(self) -> None:
        e = self.extents
        for i in range(len(e.vpn)):
            if e.kind[i] in (SPECIAL, SWAP, MARKER):
                continue
            for pfn in range(int(e.pfn[i]), int(e.pfn[i] + e.pages[i])):
                self.page_mapcount[pfn] = int(e.mapcount[i])
                self.page_pmds[pfn] += int(e.kind[i]) == PMD
                head = int(e.folio[i]) if e.order[i] else pfn
                if head not in self.folios:
                    self.folios[head] = self._folio(i, head)
        for i in range(len(e.vpn)):
            if self._begins_huge_mapping(i):
                # the sum of mapcounts has one per page for a mapping that holds one reference
                folio = self.folios[int(e.folio[i])]
                folio.refs -= folio.pages - 1

    def _folio(self, i: int, head: int) -> Folio:
        e = self.extents
        folio = Folio(
            pfn=head,
            order=int(e.order[i]),
            anon=bool(e.anon[i]),
            hugetlb=bool(e.hugetlb[i]),
            swapcache=bool(e.swapcache[i]),
            refs=int(e.folio_mapcount[i]),
            mapped=int(e.folio_mapped[i]),
            mapcount=int(e.folio_mapcount[i]),
        )
        if folio.swapcache or not folio.anon:
            folio.refs += folio.pages
        if folio.anon and not folio.hugetlb and folio.order >= 2 and folio.mapped < folio.pages:
            # deferred_split_folio() refuses what is in the swap cache
            folio.partially_mapped = folio.queued = not folio.swapcache
        if self.algorithm.thps_queued and folio.anon and not folio.hugetlb:
            folio.queued |= folio.pages == self.ptes_per_table
        return folio

    def _begins_huge_mapping(self, i: int) -> bool:
        """A PMD mapping or huge page whose pages differ in a column is several extents."""
        e = self.extents
        if e.kind[i] == PMD:
            return bool(e.vpn[i] % self.ptes_per_table == 0)
        return bool(e.kind[i] == HUGETLB and e.pfn[i] == e.folio[i])

    # ------------------------------------------------------------------ the walk

    def exit_mmap(self) -> Outcome:
        """Unmap every VMA, free the page tables, flush."""
        mappings = 0
        for mapping in self._mappings():
            if mapping[0].kind in (PMD, HUGETLB):
                mappings += 1
                self._zap_huge(mapping)
            elif mapping[0].zero:
                self.count["special_ptes"] += 1
            else:
                self._zap_pte_range(mapping)
        for _ in range(self.page_tables):
            self.count["page_tables"] += 1
            table = Folio(pfn=-1, order=0, table=True)
            if self._tlb_remove(GatherEntry(table, -1, 1, 1)):
                self._force_flush()
        self._free_tables_by_rcu()
        self._force_flush()
        self.count["gather_pages_peak"] = len(self.batches) - 1
        held = self.count["ptes"] + mappings + self.page_tables
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
                new = (i,) if self._begins_huge_mapping(i) else key
            elif zero[i]:
                new = (i,)
            else:
                new = (int(e.vma[i]), int(e.table_end[i]))
            if new != key and group:
                yield group
                group = []
            key = new
            self.table_end = int(e.table_end[i])
            for k in range(int(e.pages[i])):
                pfn = int(e.pfn[i]) + k
                head = int(e.folio[i]) if e.order[i] else pfn
                folio = self.folios[head] if kind in (PAGE, PMD, HUGETLB) else Folio(head, int(e.order[i]))
                bits = bool(e.uffd_wp[i]), bool(e.contiguous[i]), bool(e.dirty[i])
                group.append(Pte(int(e.vpn[i]) + k, kind, pfn, *bits, folio, bool(zero[i])))
        if group:
            yield group

    def _zap_huge(self, ptes: list[Pte]) -> None:
        """zap_huge_pmd() and __unmap_hugepage_range(): one entry, one rmap removal, one reference."""
        folio = ptes[0].folio
        self.count["pmd_mappings" if ptes[0].kind == PMD else "hugetlb_pages"] += 1
        pfns = [pte.pfn for pte in ptes]
        self.page_pmds.subtract(pfns if ptes[0].kind == PMD else [])
        unmapped = self._drop_mapcounts(folio, pfns)
        if folio.anon and not folio.hugetlb and 0 < unmapped < len(ptes):
            self._deferred_split_unless_marked(folio)
        if self._tlb_remove(self._entry(folio, ptes[0].pfn, 1)):
            self._force_flush()

    def _zap_pte_range(self, ptes: list[Pte]) -> None:
        """One page-table page, restarted behind the entry that filled the gather."""
        table_end = min(
            (ptes[0].vpn // self.ptes_per_table + 1) * self.ptes_per_table, self._vma_end(ptes[0])
        )
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

    def _vma_end(self, pte: Pte) -> int:
        # table_end of an extent is cut at its VMA, and all extents of a page-table page have the same
        e = self.extents
        i = int(e.vpn.searchsorted(pte.vpn, side="right")) - 1
        return int(e.table_end[i])

    def _zap_pass(self, ptes: list[Pte], position: int) -> tuple[int, bool, bool]:
        """PTEs from `position` on until the gather is full -> (position behind, force flush, full)."""
        force_flush = False
        while position < len(ptes):
            pte = ptes[position]
            if pte.kind != PAGE:
                if pte.kind != MARKER:
                    self.count["swap_entries" if pte.kind == SWAP else "special_ptes"] += 1
                position += 1
                continue
            run = self._run(ptes, position)
            force_flush |= any(page.dirty for page in run)
            done, full = self._zap_present(run)
            position += done
            self.count["ptes"] += done
            if full:
                return position, force_flush, True
        return position, force_flush, False

    def _run(self, ptes: list[Pte], position: int) -> list[Pte]:
        """The PTEs that are taken together: a run of one large folio, or a single PTE."""
        first = ptes[position]
        folio = first.folio
        rmap = self.algorithm.rmap
        run = [first]
        if folio.large and (rmap is Rmap.RUN or (rmap is Rmap.ANON_RUN and folio.anon)):
            for pte in ptes[position + 1 :]:
                last = run[-1]
                if pte.kind != PAGE or pte.folio is not folio:
                    break
                if (pte.vpn, pte.pfn) != (last.vpn + 1, last.pfn + 1):
                    break
                if rmap is Rmap.RUN and ((pte.uffd_wp, pte.contiguous) != (last.uffd_wp, last.contiguous)):
                    break
                run.append(pte)
        return run

    def _zap_present(self, run: list[Pte]) -> tuple[int, bool]:
        """Put a run into the gather and remove its rmap -> (PTEs done, whether the gather is full)."""
        folio = run[0].folio
        if self.algorithm.range_rmap:
            return 1, self._tlb_remove_range(folio, run[0].pfn)
        if self.algorithm.rmap is Rmap.ANON_RUN and folio.large and folio.anon:
            return self._zap_anon_run(run)
        entry = self._entry(folio, run[0].pfn, len(run))
        if self.algorithm.delayed_rmap and any(pte.dirty for pte in run):
            self.delayed_rmap = True
            entry.rmap_pending = True
        else:
            self._remove_rmap(folio, [pte.pfn for pte in run])
        return len(run), self._tlb_remove(entry)

    def _zap_anon_run(self, run: list[Pte]) -> tuple[int, bool]:
        """A run of an anonymous large folio goes in page by page; where the gather fills, the run ends."""
        folio = run[0].folio
        done = 0
        full = False
        self.count["refcount_atomics"] += 2
        while done < len(run) and not full:
            full = self._tlb_remove(self._entry(folio, run[done].pfn, 1))
            done += 1
        self._remove_rmap(folio, [pte.pfn for pte in run[:done]])
        return done, full

    # ------------------------------------------------------------------ the gather

    def _entry(self, folio: Folio, pfn: int, pages: int) -> GatherEntry:
        slots = 2 if self.algorithm.entry is Entry.PAGE_RUN and pages > 1 else 1
        return GatherEntry(folio, pfn, pages, slots)

    def _tlb_remove_range(self, folio: Folio, pfn: int) -> bool:
        """A page extends the open range or begins a new one -> whether the gather is full."""
        entry = self.open_range
        if entry is not None and entry.folio is folio and pfn == entry.pfn + entry.pages:
            entry.pages += 1
            if pfn + 1 == folio.pfn + folio.pages:
                self.open_range = None
            return False
        entry = GatherEntry(folio, pfn, 1, 1, rmap_pending=True)
        self.in_pass.append(entry)
        return self._tlb_remove(entry)

    def _tlb_remove(self, entry: GatherEntry) -> bool:
        """__tlb_remove_page_size(): add an entry -> whether the gather is full."""
        self.count["gather_slots"] += entry.slots
        self.used_slots += entry.slots
        self.batches[self.active].append(entry)
        if self.algorithm.entry is Entry.RANGE:
            closed = entry.pfn + entry.pages == entry.folio.pfn + entry.folio.pages
            self.open_range = None if closed else entry
        return self._batch_filled() and not self._next_batch()

    def _batch_filled(self) -> bool:
        slots = BUNDLE_SLOTS if self.active == 0 else self.batch_slots
        return slots - self.used_slots < (2 if self.algorithm.entry is Entry.PAGE_RUN else 1)

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

    def _flush_rmaps(self) -> None:
        """tlb_flush_rmaps(): the rmaps that wait for the end of the page-table page."""
        if self.algorithm.range_rmap:
            self.count["rmap_flushes"] += 1
            pending = self.in_pass
        else:
            pending = [entry for batch in self.batches for entry in batch if entry.rmap_pending]
        for entry in pending:
            entry.rmap_pending = False
            self._remove_rmap(entry.folio, list(range(entry.pfn, entry.pfn + entry.pages)))
        self.delayed_rmap = False
        self.open_range = None

    def _free_tables_by_rcu(self) -> None:
        """tlb_remove_table(): batches beside the gather; each full one makes a TLB flush."""
        for number in range(1, (self.rcu_tables or 0) + 1):
            self.freed_tables = True
            if number % self.table_batch == 0:
                self._tlb_flush()

    def _tlb_flush(self) -> None:
        """tlb_flush_mmu_tlbonly()."""
        if self.rcu_tables is None or self.freed_tables:
            self.count["tlb_flushes"] += 1
        self.freed_tables = False

    def _force_flush(self) -> None:
        self._tlb_flush()
        self._flush_gather()

    def _flush_gather(self) -> None:
        """tlb_flush_mmu_free(): hand every batch over, in pieces."""
        self.count["gather_flushes"] += 1
        group = []
        for batch in self.batches:
            entries = deque(batch)
            while entries:
                piece = []
                slots = 0
                while entries and slots < MAX_FOLIOS_PER_FREE:
                    piece.append(entries.popleft())
                    slots += piece[-1].slots
                group.append(slots)
                self._free_piece(piece)
            batch.clear()
        if group:
            self.flush_groups.append(group)
        self.active = 0
        self.used_slots = 0
        self.open_range = None

    # ------------------------------------------------------------------ rmap

    def _drop_mapcounts(self, folio: Folio, pfns: list[int]) -> int:
        """Lower the mapcounts of pages -> how many reached zero."""
        unmapped = 0
        for pfn in pfns:
            self.page_mapcount[pfn] -= 1
            if self.page_mapcount[pfn] == 0:
                unmapped += 1
        folio.mapped -= unmapped
        folio.mapcount -= len(pfns)
        return unmapped

    def _remove_rmap(self, folio: Folio, pfns: list[int]) -> None:
        """One call of page_remove_rmap(), folio_remove_rmap_range() or folio_remove_rmap_ptes()."""
        self.count["rmap_calls"] += 1
        self.count["rmap_pages"] += len(pfns)
        self.count["mapcount_atomics"] += len(pfns)
        self.rmap_sizes[len(pfns)] += 1
        unmapped = self._drop_mapcounts(folio, pfns)
        if not folio.large:
            return
        # the kernel counts mappings by PTEs and by PMDs apart; here the sum is known, and the own PMDs
        cleared = sum(self.page_mapcount[pfn] == self.page_pmds[pfn] for pfn in pfns)
        rmap = self.algorithm.rmap
        if rmap is Rmap.RUN:
            self.count["large_mapcount_atomics"] += 1
            self.count["nr_mapped_atomics"] += cleared > 0
            split = folio.mapped > 0 and not folio.partially_mapped
        elif rmap is Rmap.RANGE or (rmap is Rmap.ANON_RUN and folio.anon):
            self.count["nr_mapped_atomics"] += 1
            split = folio.mapped > 0
        else:
            self.count["nr_mapped_atomics"] += cleared
            split = True
        if folio.anon and unmapped > 0 and split:
            self._deferred_split(folio)

    def _deferred_split_unless_marked(self, folio: Folio) -> None:
        if not (self.algorithm.rmap is Rmap.RUN and folio.partially_mapped):
            self._deferred_split(folio)

    def _deferred_split(self, folio: Folio) -> None:
        """deferred_split_folio()."""
        self.count["deferred_split_calls"] += 1
        if folio.order < 2 or folio.swapcache:
            return
        folio.partially_mapped = True
        if not folio.queued:
            folio.queued = True
            self.count["deferred_split_queued"] += 1

    # ------------------------------------------------------------------ release

    def _free_piece(self, piece: list[GatherEntry]) -> None:
        """free_pages_and_swap_cache(): the swap cache first, then the references."""
        self.count["free_calls"] += 1
        for entry in piece:
            self.count["swapcache_checks"] += 1
            folio = entry.folio
            if folio.swapcache and folio.mapcount == 0:
                self.count["swapcache_frees"] += 1
                folio.swapcache = False
                folio.refs -= folio.pages
        size = RELEASE_BATCH.get(self.algorithm.release, len(piece))
        for start in range(0, len(piece), size):
            self._release(piece[start : start + size])

    def _release(self, entries: list[GatherEntry]) -> None:
        """One release call: drop references, free what has none left."""
        self.count["release_calls"] += 1
        self.release_sizes.append(len(entries))
        freed = []
        relock = self.algorithm.release in (Release.RELEASE_PAGES, Release.FOLIOS_PUT_REFS)
        locked = False
        lock_batch = 0
        for entry in entries:
            if relock and locked:
                lock_batch += 1
                locked = lock_batch < LOCK_BATCH
            if not self._drop_references(entry):
                continue
            folio = entry.folio
            freed.append(folio)
            if folio.hugetlb:
                # free_huge_folio() must not be called under the lock
                locked = False
            elif relock and folio.large:
                locked = False
                self.count["lruvec_locks"] += folio.lru
            elif folio.lru and not locked:
                self.count["lruvec_locks"] += 1
                locked = True
                lock_batch = 0
        self._log_freed(freed)

    def _drop_references(self, entry: GatherEntry) -> bool:
        """Drop an entry's references -> whether its folio is freed."""
        folio = entry.folio
        self.count["release_entries"] += 1
        self.count["refcount_atomics"] += 1
        self.count["references_dropped"] += entry.pages
        folio.refs -= entry.pages
        if folio.refs < 0:
            self.count["references_dropped_twice"] += min(entry.pages, -folio.refs)
        if folio.refs != 0:
            return False
        if folio.queued:
            folio.queued = False
            self.count["deferred_split_dequeued"] += 1
        if not folio.table and not folio.hugetlb:
            self.count["folios_freed"] += 1
            self.count["pages_freed"] += folio.pages
            self.count["freed_while_mapped"] += folio.mapcount
        return True

    def _log_freed(self, freed: list[Folio]) -> None:
        """In the order in which the kernel frees: release_pages() frees order-0 pages last, in reverse."""
        shown = [folio for folio in freed if not folio.table and not folio.hugetlb]
        if self.algorithm.release in (Release.RELEASE_PAGES, Release.FOLIOS_PUT_REFS):
            large = [folio for folio in shown if folio.large]
            shown = large + [folio for folio in reversed(shown) if not folio.large]
        self.release_freed.append(len(shown))
        self.freed += [(folio.pfn, folio.order) for folio in shown]
