"""What the replay says that the kernel will free, and what it knows of each folio."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from replay.procfs import files
from replay.procfs.files import U64
from replay.teardown import reference
from replay.teardown.algorithms import ALGORITHMS, Algorithm, tables_in_gather
from replay.teardown.extents import I64, Bool, Extents
from replay.teardown.spaces import address_spaces, page_tables, rcu_tables
from replay.trace.frame import Trace
from replay.trace.kpageflags import KPF_LRU, KPF_MLOCKED, bit
from replay.trace.schema import HUGETLB, MARKER, PAGE, SPECIAL, SWAP

ALGORITHM_SINCE: Final = (((6, 9), "mainline"), ((6, 2), "baseline"), ((0, 0), "v6.1"))
"""Releases from which on the kernel does what the algorithm does, newest first."""


@dataclass(frozen=True)
class Folios:
    """The folios that the page tables of an address space map, by pfn; arrays of shape (n,).

    own, mapcount: mappings of its pages by this address space, by all. lru: KPF LRU at capture; without it
    a folio waits in some CPU's LRU batch, or is not for the LRU. mlocked: KPF MLOCKED.
    """

    pfn: I64
    order: I64
    own: I64
    mapcount: I64
    anon: Bool
    swapcache: Bool
    lru: Bool
    mlocked: Bool

    def index(self, pfn: int) -> int:
        """Number of the folio that a frame belongs to, -1 for none."""
        place = int(np.searchsorted(self.pfn, pfn, side="right")) - 1
        return place if place >= 0 and pfn < self.pfn[place] + (1 << int(self.order[place])) else -1

    def maps(self, pfn: int) -> bool:
        """Whether a frame belongs to one of the folios."""
        return self.index(pfn) >= 0


@dataclass(frozen=True)
class Prediction:
    """What exit_mmap() will do.

    freed: (pfn, order) of folios in order. batch_ends: positions in `freed` where a release call ends that
    freed something. clean_batch_ends: the same if no PTE is dirty; the trace only infers dirty ones.
    dirty: PTEs taken for dirty. counters: of the replay; clean_counters: the same if no PTE is dirty.
    """

    folios: Folios
    freed: tuple[tuple[int, int], ...]
    batch_ends: frozenset[int]
    clean_batch_ends: frozenset[int]
    dirty: int
    counters: Mapping[str, int]
    clean_counters: Mapping[str, int]


def predict(trace: Trace, algorithm: Algorithm, in_gather: bool) -> Prediction:
    """Replay the one address space of a trace.

    in_gather: whether its page-table pages go through the gather.
    """
    [(_, space, extents)] = address_spaces(trace)
    tables = page_tables(extents, space, trace.meta) if in_gather else 0
    by_rcu = rcu_tables(extents, space, trace.meta, in_gather)
    found = reference.replay(extents, tables, trace.meta.page_size, algorithm, by_rcu)
    clean = found
    dirty = int(extents.pages[extents.dirty].sum())
    if dirty:
        without = extents._replace(dirty=np.zeros_like(extents.dirty))
        clean = reference.replay(without, tables, trace.meta.page_size, algorithm, by_rcu)
    return Prediction(
        folios=folios(extents, trace.frame["kpageflags"].to_numpy()),
        freed=tuple(found.freed),
        batch_ends=_batch_ends(found),
        clean_batch_ends=_batch_ends(clean),
        dirty=dirty,
        counters=found.counters,
        clean_counters=clean.counters,
    )


def dirty_counters(trace: Trace, algorithm: Algorithm, in_gather: bool) -> tuple[int, Mapping[str, int]]:
    """PTEs that can be dirty for all that procfs shows, and the counters if all of them are.

    They are those of page cache folios in shared VMAs; in one that must not be written they can be left.
    """
    [(_, space, extents)] = address_spaces(trace)
    tables = page_tables(extents, space, trace.meta) if in_gather else 0
    shared = trace.frame["vma_perms"].cast(pl.String).str.ends_with("s").to_numpy()
    dirty = np.array(extents.dirty | (shared & (extents.kind == PAGE) & ~extents.anon))
    by_rcu = rcu_tables(extents, space, trace.meta, in_gather)
    found = reference.replay(extents._replace(dirty=dirty), tables, trace.meta.page_size, algorithm, by_rcu)
    return int(extents.pages[dirty].sum()), found.counters


def _batch_ends(found: reference.Outcome) -> frozenset[int]:
    sizes = np.array(found.release_freed, np.int64)
    return frozenset(np.cumsum(sizes)[sizes > 0].tolist())


def folios(e: Extents, flags: U64) -> Folios:
    """The folios behind extents. flags: kpageflags of each extent's folios."""
    rows = np.flatnonzero((e.kind != SPECIAL) & (e.kind != SWAP) & (e.kind != MARKER) & (e.kind != HUGETLB))
    # order-0 neighbours share an extent: one row per page, one per extent for the others
    times = np.where(e.order[rows] == 0, e.pages[rows], 1)
    row = np.repeat(rows, times)
    within = np.arange(len(row)) - np.repeat(np.cumsum(times) - times, times)
    small = e.order[row] == 0
    pfn = np.where(small, e.pfn[row] + within, e.folio[row])
    mapped = np.where(small, 1, e.pages[row])
    unique, first, number = np.unique(pfn, return_index=True, return_inverse=True)
    row = row[first]
    return Folios(
        pfn=unique,
        order=e.order[row],
        own=np.bincount(number, mapped, minlength=len(unique)).astype(np.int64),
        mapcount=e.folio_mapcount[row],
        anon=e.anon[row],
        swapcache=e.swapcache[row],
        lru=flags[row] & np.uint64(bit(KPF_LRU)) != 0,
        mlocked=flags[row] & np.uint64(bit(KPF_MLOCKED)) != 0,
    )


def algorithm_of(release: str) -> Algorithm:
    """The algorithm of a kernel, by `uname -r`: nothing that procfs shows tells them apart."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
    return ALGORITHMS[next(name for since, name in ALGORITHM_SINCE if numbers >= since)]


def page_tables_in_gather(root: Path, architecture: str) -> bool:
    """Whether this kernel puts page-table pages through the gather, by its configuration.

    Linux kernel commit 4817f70c25b6 "x86: select ARCH_SUPPORTS_PT_RECLAIM if X86_64" (in v6.14) makes x86
    free them by RCU, as other architectures do; before, only paravirtualised guests did.
    """
    if not tables_in_gather(architecture):
        return False
    return "CONFIG_PT_RECLAIM=y" not in files.kernel_config(root).splitlines()
