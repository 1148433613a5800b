"""A trace that can be shown to others: names replaced, page frames renumbered, every count the same."""

from __future__ import annotations

import dataclasses
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from replay.trace.frame import SCHEMA, Trace
from replay.trace.schema import ptes_per_table

I64 = npt.NDArray[np.int64]


def redact(trace: Trace) -> Trace:
    """Replace command names, file names and names of anonymous memory; renumber page frames and swap offsets.

    Command lines are left out. Memory that is anonymous by its name ([anon:NAME]) stays so.
    Neighbours stay neighbours, others do not become it, and alignment stays, to that of the largest folio and
    of a PMD mapping: every replay counts the same. Equal names stay equal. [heap] and the like remain.
    """
    frame, meta = trace.frame, trace.meta
    comms = _numbered([space.comm for space in meta.address_spaces], "process")
    found = frame["vma_name"].cast(pl.String).unique(maintain_order=True).to_list()
    named = [name for name in found if not _is_kernels(name)]
    names = _numbered([name for name in named if not _prefix(name)], "file")
    for prefix in ANON_NAMES:
        anon = _numbered([name for name in named if _prefix(name) == prefix], "name")
        names |= {name: f"{prefix}{new}]" for name, new in anon.items()}
    swap = frame["kind"].cast(pl.String) == "swap"
    align = max([ptes_per_table(meta.page_size), *(1 << order for order in frame["order"].unique())])
    pfn, folio = _renumbered(frame.with_columns(swap.alias("swap")), align)
    redacted = frame.with_columns(
        pl.col("comm").cast(pl.String).replace(comms),
        pl.col("vma_name").cast(pl.String).replace(names),
        pl.Series("pfn", pfn),
        pl.Series("folio", folio),
    ).cast(SCHEMA)  # type: ignore[arg-type]
    spaces = tuple(
        dataclasses.replace(space, comm=comms[space.comm], cmdline="") for space in meta.address_spaces
    )
    return dataclasses.replace(
        trace, frame=redacted, meta=dataclasses.replace(meta, address_spaces=spaces, redacted=True)
    )


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
    """New `pfn` and `folio` of all rows; frames and swap offsets are numbered apart."""
    pfn, folio = frame["pfn"].to_numpy().copy(), frame["folio"].to_numpy().copy()
    pages = frame["pages"].cast(pl.Int64).to_numpy()
    size = np.int64(1) << frame["order"].cast(pl.Int64).to_numpy()
    swap = frame["swap"].to_numpy()
    marker = frame["kind"].cast(pl.String).to_numpy() == "marker"
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
