"""Pagemap words -> runs: the compact form in which the page tables of a process are held.

A *run* is a longest sequence of pagemap words of one VMA at adjacent addresses in which every word is the
one before it plus one frame, and equal in all flags. A 2 MiB folio is one run, not 512 words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replay.capture.procfs import (
    PM_EXCLUSIVE,
    PM_PFRAME,
    PM_PRESENT,
    PM_SOFT_DIRTY,
    PM_SWAP,
    SWAP_TYPE_BITS,
    U64,
)

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]


class Runs(NamedTuple):
    """vpn: int64, word: uint64 (of the first page), pages: int32, vma: int32 (index); each of shape (n,)."""

    vpn: I64
    word: U64
    pages: I32
    vma: I32

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Whether the runs are of present PTEs; the others are swap entries."""
        return self.word >= PM_PRESENT  # the highest bit

    @property
    def frame(self) -> I64:
        """First page frame, or swap type and offset."""
        return (self.word & PM_PFRAME).view(np.int64)

    def select(self, which: npt.NDArray[np.bool_] | I64 | slice) -> Runs:
        """Some of the runs, by mask, indices or slice."""
        return Runs(self.vpn[which], self.word[which], self.pages[which], self.vma[which])


def concat(parts: Sequence[Runs]) -> Runs:
    """Runs one after the other."""
    if len(parts) == 1:
        return parts[0]
    none = Runs(np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros(0, np.int32), np.zeros(0, np.int32))
    vpn, word, pages, vma = zip(*(parts or [none]), strict=True)
    return Runs(np.concatenate(vpn), np.concatenate(word), np.concatenate(pages), np.concatenate(vma))


def runs_of(first: I64, size: I64, words: U64, vma_starts: I64) -> Runs:
    """Runs of the pagemap words of some spans of pages, which lie in VMAs that start at `vma_starts`.

    first, size: int64, shape (spans,), pages of each span, in address order. words: uint64, those of all
    spans one after the other. vma_starts: int64, sorted.
    """
    offset = np.cumsum(size) - size
    taken = words >= PM_SWAP  # PM_PRESENT or PM_SWAP, the two highest bits
    start = np.empty(len(words), bool)
    start[:1] = True
    # present words that go on by one frame, swap entries that go on by one offset
    step = words[1:] - words[:-1]
    start[1:] = step != 1
    if not words.min(initial=PM_PRESENT) >= PM_PRESENT:
        start[1:] &= (step != 1 << SWAP_TYPE_BITS) | (words[1:] >= PM_PRESENT)
        start[1:] |= (step == 1) & (words[1:] < PM_PRESENT)
        start[1:] |= ~taken[:-1]
    # nor does a run go on in the next span or VMA
    start[offset[size > 0]] = True
    span = np.searchsorted(first, vma_starts, side="right") - 1
    inside = (span >= 0) & (vma_starts < (first + size)[span])
    start[(offset - first)[span[inside]] + vma_starts[inside]] = True
    start &= taken
    begin = np.flatnonzero(start)
    # a run ends where the next begins, or before that at the first hole
    ends = np.append(begin[1:], len(words))
    holes = np.flatnonzero(taken[:-1] & ~taken[1:]) + 1
    if len(holes) and len(begin):
        hole = np.append(holes, len(words))[np.searchsorted(holes, begin, side="right")]
        ends = np.minimum(ends, hole)
    vpn = begin + _steps(begin, offset, first - offset)
    return Runs(
        vpn=vpn,
        word=words[begin],
        pages=(ends - begin).astype(np.int32),
        vma=_steps(vpn, vma_starts, np.arange(len(vma_starts), dtype=np.int32)),
    )


def _steps(points: I64, borders: I64, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The value that holds from the last border up to each point; both sorted, no point before the first."""
    place = np.searchsorted(points, borders)
    return np.repeat(values, np.diff(place, append=len(points)))


def distinct(values: I64) -> I64:
    """The values sorted, each once. `np.unique` would first load numpy.ma, which takes 7 ms."""
    values = np.sort(values)
    return values[np.diff(values, prepend=values[:1] - 1) != 0]


def cover(starts: I64, ends: I64, least: int) -> tuple[I64, I64, I64]:
    """Where at least `least` of the ranges [start, end) overlap: (start, end, how many), sorted, disjoint."""
    starts, ends = np.sort(starts), np.sort(ends)
    if least > 1:
        # where the next range starts behind the end of all before it, these overlap with none that follow
        alone = np.ones(len(starts) + 1, bool)
        alone[1:-1] = starts[1:] >= ends[:-1]
        some = ~(alone[1:] & alone[:-1])
        starts, ends = starts[some], ends[some]
    points = distinct(np.concatenate([starts, ends]))
    depth = np.searchsorted(starts, points, side="right") - np.searchsorted(ends, points, side="right")
    changes = np.flatnonzero(np.diff(depth, prepend=0))
    points, depth = points[changes], depth[changes]
    inside = np.flatnonzero(depth >= least)
    return points[inside], points[inside + 1], depth[inside]


def cuts_inside(starts: I64, pages: I64 | I32, cuts: I64) -> tuple[I64, I64]:
    """Which sorted `cuts` fall inside ranges that start at `starts` with `pages` each.

    Returns (index of the range, offset in it) of each cut that is not at a range's start.
    """
    low = np.searchsorted(cuts, starts, side="right")
    counts = np.searchsorted(cuts, starts + pages, side="left") - low
    counts = np.maximum(counts, 0)
    index = np.repeat(np.arange(len(starts)), counts)
    place = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts) + low[index]
    return index, cuts[place] - starts[index]


def difference(before: Runs, after: Runs) -> int:
    """Pages whose entry differs between two readings of the same place.

    Changes of PM_EXCLUSIVE and PM_SOFT_DIRTY do not count: other processes and their exits make the first.
    """
    unchanged = np.array_equal(before.vpn, after.vpn) and np.array_equal(before.word, after.word)
    if unchanged and np.array_equal(before.pages, after.pages):
        return 0
    (old_vpn, old_word), (new_vpn, new_word) = _expanded(before), _expanded(after)
    common, old_place, new_place = np.intersect1d(old_vpn, new_vpn, assume_unique=True, return_indices=True)
    same = int((old_word[old_place] == new_word[new_place]).sum())
    return len(old_vpn) + len(new_vpn) - len(common) - same


def _expanded(some: Runs) -> tuple[I64, U64]:
    """Page number and word of every page, without the bits that change by themselves."""
    offset = np.arange(int(some.pages.sum())) - np.repeat(np.cumsum(some.pages) - some.pages, some.pages)
    step = np.where(some.present, 1, 1 << SWAP_TYPE_BITS)
    word = np.repeat(some.word & ~(PM_EXCLUSIVE | PM_SOFT_DIRTY), some.pages)
    return np.repeat(some.vpn, some.pages) + offset, word + (offset * np.repeat(step, some.pages)).astype(
        np.uint64
    )


def contiguous(some: Runs) -> Runs:
    """Present runs joined where only PM_EXCLUSIVE or PM_SOFT_DIRTY parts them, as inside a PMD mapping."""
    some = some.select(some.present)
    if not len(some.vpn):
        return some
    next_word = (some.word + some.pages.astype(np.uint64)) & ~(PM_EXCLUSIVE | PM_SOFT_DIRTY)
    apart = np.ones(len(some.vpn), bool)
    apart[1:] = (
        (some.vpn[1:] != some.vpn[:-1] + some.pages[:-1])
        | (some.word[1:] & ~(PM_EXCLUSIVE | PM_SOFT_DIRTY) != next_word[:-1])
        | (some.vma[1:] != some.vma[:-1])
    )
    begin = np.flatnonzero(apart)
    return Runs(some.vpn[begin], some.word[begin], np.add.reduceat(some.pages, begin), some.vma[begin])
