# SPDX-License-Identifier: Apache-2.0
"""What the replay predicts that the kernel will free, and what it knows of each folio."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from replay.procfs.files import U64
from replay.teardown import reference
from replay.teardown.algorithms import ALGORITHMS, Algorithm, PageTables, of_kernel
from replay.teardown.extents import I64, Bool, Extents
from replay.teardown.spaces import address_spaces
from replay.trace.frame import Trace
from replay.trace.kpageflags import KPF_LRU, KPF_MLOCKED, bit
from replay.trace.schema import PAGE, PMD

TABLES_BY_RCU = "CONFIG_PT_RECLAIM=y"
"""With this option x86 frees page-table pages by RCU, as other architectures do.

Linux kernel commit 4817f70c25b6 "x86: select ARCH_SUPPORTS_PT_RECLAIM if X86_64" (in v6.14).
"""


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
        """The number of the folio that a frame belongs to, or -1."""
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


def predict(trace: Trace, algorithm: Algorithm) -> Prediction:
    """Replay the one address space of a trace."""
    [space] = address_spaces(trace)
    extents = space.extents
    found = reference.replay(space, algorithm)
    clean = found
    dirty = int(extents.pages[extents.dirty].sum())
    if dirty:
        without = extents._replace(dirty=np.zeros_like(extents.dirty))
        clean = reference.replay(dataclasses.replace(space, extents=without), algorithm)
    return Prediction(
        folios=folios(extents, trace.frame["kpageflags"].to_numpy()),
        freed=tuple(found.freed),
        batch_ends=_batch_ends(found),
        clean_batch_ends=_batch_ends(clean),
        dirty=dirty,
        counters=found.counters,
        clean_counters=clean.counters,
    )


def dirty_counters(trace: Trace, algorithm: Algorithm) -> tuple[int, Mapping[str, int]]:
    """PTEs that can be dirty as far as procfs shows, and the counters if all of them are.

    These are PTEs of page cache folios in shared VMAs. In a VMA that must not be written they can be left
    from before.
    """
    [space] = address_spaces(trace)
    extents = space.extents
    shared = trace.frame["vma_perms"].cast(pl.String).str.ends_with("s").to_numpy()
    dirty = np.array(extents.dirty | (shared & (extents.kind == PAGE) & ~extents.anon))
    changed = dataclasses.replace(space, extents=extents._replace(dirty=dirty))
    return int(extents.pages[dirty].sum()), reference.replay(changed, algorithm).counters


def _batch_ends(found: reference.Outcome) -> frozenset[int]:
    sizes = np.array(found.release_freed, np.int64)
    return frozenset(np.cumsum(sizes)[sizes > 0].tolist())


def folios(e: Extents, flags: U64) -> Folios:
    """The folios behind extents. flags: kpageflags of each extent's folios."""
    rows = np.flatnonzero(np.isin(e.kind, (PAGE, PMD)))
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


def shown_names() -> frozenset[str]:
    """All functions and lines of the configuration that tell kernels apart."""
    return frozenset().union(*(algorithm.shown_by for algorithm in ALGORITHMS.values()), [TABLES_BY_RCU])


def algorithm_of(shown: Collection[str]) -> Algorithm:
    """The algorithm of a kernel that has these of `shown_names()`."""
    algorithm = of_kernel(shown)
    if TABLES_BY_RCU in shown:
        return dataclasses.replace(algorithm, page_tables=PageTables.RCU)
    return algorithm
