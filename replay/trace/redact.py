# SPDX-License-Identifier: Apache-2.0
"""A trace that can be shown to others: names, numbers and places replaced, every count the same."""

from __future__ import annotations

import dataclasses
import re
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from replay.trace.frame import SCHEMA, Trace
from replay.trace.schema import ptes_per_table

I64 = npt.NDArray[np.int64]

GIB: Final = 1 << 30

VERSION: Final = re.compile(r"\d+(\.\d+)*")
"""The numbers at the beginning of a kernel's release; what follows is its builder's."""

DAY: Final = len("2026-01-31")


def redact(trace: Trace) -> Trace:
    """Replace names and command lines; renumber processes, page frames, swap offsets, VMAs' places and
    cgroups.

    Memory that is anonymous by its name ([anon:NAME]) stays so.

    What stays: sizes, permissions and flags of VMAs and their order and distances within a gibibyte; which
    rows share a page, a folio, a process or a name; all counts; [heap] and the like; the kernel's version
    numbers, the day, page size, architecture and THP settings.

    Neighbours stay neighbours, others do not become it. Page frames keep their alignment to the largest folio
    and to a PMD mapping; addresses keep theirs to 1 GiB, so that page tables begin where they did: every
    replay counts the same. Equal names stay equal.
    """
    frame, meta = trace.frame, trace.meta
    comms = _numbered([space.comm for space in meta.address_spaces], "process")
    pids = {pid: number for number, pid in enumerate(dict.fromkeys(_pids(trace)), 1)}
    memcgs = {memcg: number for number, memcg in enumerate(filter(None, frame["memcg"].unique().sort()), 1)}
    found = frame["vma_name"].cast(pl.String).unique(maintain_order=True).to_list()
    named = [name for name in found if not _is_kernels(name)]
    names = _numbered([name for name in named if not _prefix(name)], "file")
    for prefix in ANON_NAMES:
        anon = _numbered([name for name in named if _prefix(name) == prefix], "name")
        names |= {name: f"{prefix}{new}]" for name, new in anon.items()}
    swap = frame["kind"].cast(pl.String) == "swap"
    align = max([ptes_per_table(meta.page_size), *(1 << order for order in frame["order"].unique())])
    pfn, folio = _renumbered(frame.with_columns(swap.alias("swap")), align)
    # a marker is nowhere
    marker = (frame["kind"].cast(pl.String) == "marker").to_numpy()
    pfn[marker], folio[marker] = 0, 0
    down = _shifts(frame, meta.page_size)
    redacted = frame.with_columns(
        pl.col("comm").cast(pl.String).replace(comms),
        pl.col("pid").replace(pids),
        pl.col("memcg").replace(memcgs),
        pl.col("vma_name").cast(pl.String).replace(names),
        pl.Series("pfn", pfn),
        pl.Series("folio", folio),
        pl.col("vpn") - pl.Series(down),
        pl.col("vma_start").cast(pl.Int64) - pl.Series(down),
    ).cast(SCHEMA)  # type: ignore[arg-type]
    spaces = tuple(
        dataclasses.replace(
            space,
            pid=pids[space.pid],
            comm=comms[space.comm],
            cmdline="",
            shared_with=tuple(pids[pid] for pid in space.shared_with),
        )
        for space in meta.address_spaces
    )
    version = VERSION.match(meta.kernel_release)
    shown = dataclasses.replace(
        meta,
        address_spaces=spaces,
        kernel_release=version[0] if version else "",
        captured_at=meta.captured_at[:DAY],
        part="some rows" if meta.part else "",
        redacted=True,
    )
    # nobody has to hold these rows against the figures again: they are the same
    checked = redacted if trace.checked is trace.frame else None
    return dataclasses.replace(trace, frame=redacted, meta=shown, checked=checked)


def _pids(trace: Trace) -> list[int]:
    """The processes that a trace names, in order of their address spaces."""
    spaces = trace.meta.address_spaces
    return [space.pid for space in spaces] + [pid for space in spaces for pid in space.shared_with]


def _shifts(frame: pl.DataFrame, page_size: int) -> I64:
    """By how many pages each row moves down, so that gibibytes without a row of their address space close up.

    A gap of several empty gibibytes becomes one of one: neighbours stay neighbours, and the others apart.
    int64, shape (rows,).
    """
    size = GIB // page_size
    start, pages = (frame[name].cast(pl.Int64).to_numpy() for name in ("vma_start", "vma_pages"))
    mm = frame["mm"].cast(pl.Int64).to_numpy()
    first, last = start // size, (start + pages - 1) // size
    down = np.zeros(len(frame), np.int64)
    begin = np.ones(len(frame), np.bool_)
    begin[1:] = (mm[1:] != mm[:-1]) | (start[1:] != start[:-1])
    rows = np.flatnonzero(begin)
    before_mm, before_last, shift = -1, 0, 0
    for row in rows.tolist():
        if mm[row] != before_mm:
            # the first gibibyte of every address space becomes the second
            before_mm, shift = mm[row], int(first[row]) - 1
        else:
            shift += max(int(first[row]) - before_last - 2, 0)
        before_last = int(last[row])
        down[row] = shift
    return np.asarray(down[rows][np.cumsum(begin) - 1] * size)


def _is_kernels(name: str) -> bool:
    """Names that the kernel gives, which tell nothing of the process; not those of PR_SET_VMA_ANON_NAME."""
    return name in ("", "/dev/zero") or (name.startswith("[") and not _prefix(name))


ANON_NAMES: Final = ("[anon:", "[anon_shmem:")
"""How the names of PR_SET_VMA_ANON_NAME begin, in private and in shared memory."""


def _prefix(name: str) -> str:
    return next((prefix for prefix in ANON_NAMES if name.startswith(prefix)), "")


def _numbered(names: list[str], what: str) -> dict[str, str]:
    return {name: f"{what}-{number}" for number, name in enumerate(dict.fromkeys(names), 1)}


def _renumbered(frame: pl.DataFrame, align: int) -> tuple[I64, I64]:
    """New `pfn` and `folio` of all rows; frames and swap offsets are numbered apart, markers have none."""
    pfn, folio = frame["pfn"].to_numpy().copy(), frame["folio"].to_numpy().copy()
    pages = frame["pages"].cast(pl.Int64).to_numpy()
    size = np.int64(1) << frame["order"].cast(pl.Int64).to_numpy()
    swap = frame["swap"].to_numpy()
    marker = (frame["kind"].cast(pl.String) == "marker").to_numpy()
    for which in (swap, ~swap & ~marker):
        starts = np.minimum(pfn[which], folio[which])
        ends = np.maximum(pfn[which] + pages[which], folio[which] + size[which])
        blocks = _blocks(starts, ends, align)
        # a block that does not follow the one before it leaves a gap of one block
        new = np.arange(len(blocks)) + np.cumsum(np.diff(blocks, prepend=blocks[:1]) > 1) + 1
        for column in (pfn, folio):
            place = np.searchsorted(blocks, column[which] // align)
            column[which] = new[place] * align + column[which] % align
    return pfn, folio


def _blocks(starts: I64, ends: I64, align: int) -> I64:
    """Numbers of the aligned blocks that some page ranges touch, in order."""
    first, last = starts // align, (ends - 1) // align
    counts = last - first + 1
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.unique(np.repeat(first, counts) + within)
